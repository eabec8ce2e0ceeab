"""Attacking a finished run, in the run's own folder.

attacks/NAME/state.safetensors      checkpoint while the attack trains
attacks/NAME/redrawn-*.safetensors  what was redrawn so far, while an attack works image by image
attacks/NAME/attack.safetensors     weights of what redraws
attacks/NAME/pictures.safetensors   a few originals, what became of them, and the errors image by image
attacks/NAME/result.json            written last: its presence means the attack is complete
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sfumato import attacks, checkpoint, metrics
from sfumato.attacks import AttackConfig, Inversion, Observer, invert, measure_leakage
from sfumato.data import DataSets, ImageSet
from sfumato.errors import CheckpointError
from sfumato.evidence import evidence
from sfumato.files import write_json
from sfumato.seeds import generator
from sfumato.training.run import Run

__all__ = ["Attacked", "attack_folder", "attack_run"]


@dataclass(frozen=True)
class Attacked:
    """An attack's figures and pictures.

    Attributes:
        result: as written to `result.json`.
        train, test: reconstruction of training and of test images.
    """

    result: dict[str, Any]
    train: Inversion
    test: Inversion


def attack_folder(run: Run, name: str) -> Path:
    """Where the attack called `name` keeps its files."""
    return run.folder / "attacks" / name


def attack_run(
    run: Run,
    sets: DataSets,
    config: AttackConfig,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    redrawing: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Attacked:
    """Train an attack on a run's training set and measure it on training images and on test images.

    (The paper calls these "train" and "infer".) Resumes where an earlier call with the same settings was interrupted; a
    finished attack is read back. Training images are a sample of the size of the test set where there are more.

    Args:
        run: the victim.
        sets: the run's data.
        config: settings, whose type says which attack.
        device: where to compute.
        progress: called after every epoch.
        redrawing: called with (done, total) images while they are redrawn.
        should_stop: asked after every step; True saves and leaves.

    Raises:
        CheckpointError: the images are not those of the run, or the folder holds an attack with other settings.
        ConfigError: the settings belong to no attack.
        Interrupted: `should_stop` said so; the same call goes on from there.
    """
    if sets.train.fingerprint() != run.result["data"]:
        raise CheckpointError(f"the training images are not those that {run.folder} was trained on; check --data-dir")
    attack = attacks.build(config)
    folder = attack_folder(run, attack.name)
    identity = {
        "config": asdict(config),
        "victim": run.result["config"],
        "data": {"train": sets.train.fingerprint(), "test": sets.test.fingerprint()},
    }
    if (stored := _stored(folder, identity)) is not None:
        return stored
    observer = Observer(run.model, sets.train, device=device)
    state = folder / "state.safetensors"
    attack.fit(observer, state=state, progress=progress, should_stop=should_stop)
    assert attack.outcome is not None
    checkpoint.save(folder / "attack.safetensors", attack.weights(), {"config": asdict(config)})
    began = time.monotonic()
    shown = {"train": _sample(sets.train, len(sets.test), config.seed), "test": sets.test}
    partly = {name: folder / f"redrawn-{name}.safetensors" for name in shown}
    train, test = (
        invert(
            attack,
            run.model,
            images,
            seed=config.seed,
            state=partly[name],
            progress=redrawing,
            should_stop=should_stop if attack.most_images is not None else None,
        )
        for name, images in shown.items()
    )
    _save_pictures(folder, train, test)
    result = {
        "attack": attack.name,
        "victim_accuracy": run.result["accuracy"],
        "train": train.as_dict(),
        "test": test.as_dict(),
        "leakage": measure_leakage(run.model, sets.test, seed=config.seed).as_dict(),
        "mean_image_mse": _mean_image_error(sets),
        "outcome": asdict(attack.outcome),
        "history": attack.history,
        "seconds": round(attack.seconds, 3),
        "redraw_seconds": round(time.monotonic() - began, 3),
        "images": {"train": len(train.each["mse"]), "test": len(test.each["mse"])},
        **identity,
        "caveat": sets.caveat,
        "evidence": evidence(device),
    }
    write_json(folder / "result.json", result)
    for path in (state, *partly.values()):
        path.unlink(missing_ok=True)
    return Attacked(result, train, test)


def _stored(folder: Path, identity: dict[str, Any]) -> Attacked | None:
    """The finished attack in `folder`, if there is one."""
    path, pictures_path = folder / "result.json", folder / "pictures.safetensors"
    if not path.exists() or not pictures_path.exists():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        parts = {name: result[name] for name in ("train", "test")}
        theirs = {name: result[name] for name in identity}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it and run the command again") from error
    if changed := _changes(theirs, json.loads(json.dumps(identity))):
        raise CheckpointError(f"{folder} holds another attack ({changed}); delete that folder to attack anew")
    pictures, _ = checkpoint.load(pictures_path)
    train, test = (
        Inversion(
            **part,
            originals=pictures[f"{name}.originals"],
            redrawn=pictures[f"{name}.redrawn"],
            each=checkpoint.unflatten_state(f"{name}.each", pictures),
        )
        for name, part in parts.items()
    )
    return Attacked(result, train, test)


def _changes(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    """What differs, in words."""
    settings = {name: (theirs["config"].get(name), value) for name, value in mine["config"].items()}
    changed = [f"{name} {before} -> {value}" for name, (before, value) in settings.items() if before != value]
    if theirs["data"] != mine["data"]:
        changed.append("other images")
    if theirs["victim"] != mine["victim"]:
        changed.append("another victim")
    return ", ".join(changed)


def _save_pictures(folder: Path, train: Inversion, test: Inversion) -> None:
    tensors = {
        f"{name}.{kind}": images
        for name, part in (("train", train), ("test", test))
        for kind, images in (("originals", part.originals), ("redrawn", part.redrawn))
    }
    for name, part in (("train", train), ("test", test)):
        tensors |= checkpoint.flatten_state(f"{name}.each", part.each)
    checkpoint.save(folder / "pictures.safetensors", tensors, {})


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
