"""Attacking a finished run, in the run's own folder."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sfumato import checkpoint, metrics
from sfumato.attacks import DecoderAttack, DecoderConfig, Inversion, Observer, invert
from sfumato.data import DataSets, ImageSet
from sfumato.errors import CheckpointError
from sfumato.evidence import evidence
from sfumato.files import write_json
from sfumato.seeds import generator
from sfumato.training.run import Run

__all__ = ["Attacked", "attack_run"]


@dataclass(frozen=True)
class Attacked:
    """An attack's figures and pictures.

    Attributes:
        result: as written to `attack/result.json`.
        train, test: reconstruction of training and of test images.
    """

    result: dict[str, Any]
    train: Inversion
    test: Inversion


def attack_run(
    run: Run,
    sets: DataSets,
    config: DecoderConfig,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> Attacked:
    """Train the decoding attack on a run's training set and measure it on training and on test images.

    Resumes where an earlier call with the same settings was interrupted. Training images are a sample of the size of
    the test set where there are more.

    Raises:
        CheckpointError: the images are not those of the run, or the folder holds an attack with other settings.
    """
    if sets.train.fingerprint() != run.result["data"]:
        raise CheckpointError(f"the training images are not those that {run.folder} was trained on; check --data-dir")
    folder = run.folder / "attack"
    attack = DecoderAttack(config)
    observer = Observer(run.model, sets.train, device=device)
    attack.fit(observer, state=folder / "state.safetensors", progress=progress)
    assert attack.net is not None
    assert attack.outcome is not None
    checkpoint.save(folder / "attack.safetensors", attack.net.state_dict(), {"config": asdict(config)})
    train = invert(attack, run.model, _sample(sets.train, len(sets.test), config.seed), seed=config.seed)
    test = invert(attack, run.model, sets.test, seed=config.seed)
    result = {
        "attack": attack.name,
        "victim_accuracy": run.result["accuracy"],
        "train": train.as_dict(),
        "test": test.as_dict(),
        "mean_image_mse": _mean_image_error(sets),
        "outcome": asdict(attack.outcome),
        "history": attack.history,
        "config": asdict(config),
        "victim": run.result["config"],
        "caveat": sets.caveat,
        "evidence": evidence(device),
    }
    write_json(folder / "result.json", result)
    return Attacked(result, train, test)


def _sample(images: ImageSet, count: int, seed: int) -> ImageSet:
    if len(images) <= count:
        return images
    return images.subset(torch.randperm(len(images), generator=generator(seed, "sample"))[:count])


def _mean_image_error(sets: DataSets) -> float:
    """The error of an attacker who ignores the feature and always answers with the mean training image."""
    mean = sets.train.images.double().mean(0, keepdim=True).div_(255).float()
    total = 0.0
    for indices in torch.arange(len(sets.test)).split(2048):
        x = sets.test.float(indices)
        total += float(metrics.mse(x, mean.expand_as(x)).sum())
    return total / len(sets.test)
