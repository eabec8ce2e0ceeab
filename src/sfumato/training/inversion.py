"""Attacking a finished run, in the run's own folder.

attacks/NAME/config.json             settings, written first
attacks/NAME/state.safetensors          checkpoint while the attack trains
attacks/NAME/reconstructed-*.safetensors what was reconstructed so far, while an attack works image by image
attacks/NAME/attack.safetensors         weights of what reconstructs
attacks/NAME/pictures.safetensors       a few originals, what became of them, and the errors image by image
attacks/NAME/result.json                written last: its presence means the attack is complete
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato import attacks, checkpoint
from sfumato.attacks import AttackConfig, Convergence, Observer, Reconstruction, invert, mean_image_error
from sfumato.data import DataSets, ImageSet
from sfumato.errors import CheckpointError
from sfumato.files import read_json, write_json
from sfumato.provenance import evidence
from sfumato.seeds import generator
from sfumato.training.run import Run

__all__ = ["Attacked", "Suite", "attack_folder", "attack_run", "attack_suite", "stored_settings"]


@dataclass(frozen=True)
class Attacked:
    """An attack's figures and pictures."""

    result: dict[str, Any]  # as written to `result.json`
    train: Reconstruction  # of training images
    test: Reconstruction  # of test images
    originals: Tensor  # the first test images, (n, C, H, W) in [0, 1], of which `test` keeps the reconstructions


@dataclass(frozen=True)
class Suite:
    """Several attacks on one run, those in closed form among them."""

    attacks: dict[str, Attacked]  # by name, in the order in which they ran
    verdicts: dict[str, Convergence]  # whether each had come to rest, by today's rule
    strongest: str  # the name of the one with the smallest error on test images

    def figures(self) -> dict[str, dict[str, Any]]:
        """What a result keeps of each attack; `attacks.judged` reads its convergence from that whenever it is shown."""
        return {name: _figures(one.result) for name, one in self.attacks.items()}


def attack_suite(
    run: Run,
    sets: DataSets,
    configs: Sequence[AttackConfig],
    *,
    progress: Callable[[str, int, int, dict[str, float]], None] | None = None,
    **options: Any,
) -> Suite:
    """`attack_run` for each of these attacks and for those in closed form, which take seconds and need not be named.

    `progress` is called as (name, done, total, figures) after every epoch; `options` are those of `attack_run`.
    """
    found = {}
    seed = configs[0].seed if configs else run.config.seed
    for config in attacks.with_closed_forms(*configs, seed=seed):
        name = attacks.name_of(config)
        told = None if progress is None else partial(progress, name)
        found[name] = attack_run(run, sets, config, progress=told, **options)
    return Suite(
        found,
        attacks.judged({name: _figures(one.result) for name, one in found.items()}),
        attacks.strongest({name: one.result["test"]["mse"] for name, one in found.items()}),
    )


def _figures(result: Mapping[str, Any]) -> dict[str, Any]:
    figures = attacks.figures_of(result["outcome"], result["history"], train=result["train"], test=result["test"])
    return figures | {"mean_image_mse": result["mean_image_mse"], "seconds": result["seconds"]}


def attack_folder(run: Run, name: str) -> Path:
    """Where the attack called `name` keeps its files."""
    return run.folder / "attacks" / name


def stored_settings(run: Run, name: str) -> dict[str, Any]:
    """The settings of the attack that the run has under this name, finished or not; nothing if there is none."""
    path = attack_folder(run, name) / "config.json"
    return read_json(path) if path.exists() else {}


def attack_run(
    run: Run,
    sets: DataSets,
    config: AttackConfig,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    reconstructing: Callable[[int, int], None] | None = None,
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
        reconstructing: called with (done, total) images while they are reconstructed.
        should_stop: asked after every step; True saves and leaves.

    Raises:
        CheckpointError: the images are not those of the run, or the folder holds an attack with other settings.
        ConfigError: the settings belong to no attack.
        Interrupted: `should_stop` said so; the same call resumes there.
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
    if (stored := _stored(folder, identity, sets.test)) is not None:
        return stored
    write_json(folder / "config.json", identity["config"])
    state = folder / "state.safetensors"
    attack.fit(Observer(run.model, sets.train, device=device), state=state, progress=progress, should_stop=should_stop)
    assert attack.outcome is not None
    checkpoint.save(folder / "attack.safetensors", attack.weights(), {"config": asdict(config)})
    began = time.monotonic()
    shown = {"train": _sample(sets.train, len(sets.test), config.seed), "test": sets.test}
    partly = {name: folder / f"reconstructed-{name}.safetensors" for name in shown}
    stop = should_stop if attack.most_images is not None else None
    train, test = (
        invert(
            attack, run.model, images, seed=config.seed, state=partly[name], progress=reconstructing, should_stop=stop
        )
        for name, images in shown.items()
    )
    checkpoint.save(folder / "pictures.safetensors", train.tensors("train") | test.tensors("test"), {})
    result = {
        "attack": attack.name,
        "victim_accuracy": run.result["accuracy"],
        "train": train.means(),
        "test": test.means(),
        "mean_image_mse": mean_image_error(sets.train, sets.test),
        "outcome": asdict(attack.outcome),
        "history": attack.history,
        "seconds": round(attack.seconds, 3),
        "reconstruct_seconds": round(time.monotonic() - began, 3),
        "images": {"train": len(train), "test": len(test)},
        **identity,
        "caveat": sets.caveat,
        "evidence": evidence(device),
    }
    write_json(folder / "result.json", result)
    for path in (state, *partly.values()):
        path.unlink(missing_ok=True)
        checkpoint.drop_previous(path)
    return Attacked(result, train, test, _originals(sets.test, test))


def _stored(folder: Path, identity: dict[str, Any], images: ImageSet) -> Attacked | None:
    """The finished attack in `folder`, if there is one."""
    path, pictures_path = folder / "result.json", folder / "pictures.safetensors"
    if not path.exists() or not pictures_path.exists():
        return None
    result, mine = read_json(path), json.loads(json.dumps(identity))
    if missing := [name for name in mine if not isinstance(result.get(name), dict)]:
        raise CheckpointError(f"{path} is damaged (it has no {missing[0]}); delete it and run the command again")
    settings = {name: (result["config"].get(name, value), value) for name, value in mine["config"].items()}
    changed = [f"{name} {before} -> {value}" for name, (before, value) in settings.items() if before != value]
    changed += ["other images"] * (result["data"] != mine["data"])
    changed += ["another victim"] * (result["victim"] != mine["victim"])
    if changed:
        what = f"{folder} holds another attack ({', '.join(changed)})"
        raise CheckpointError(f"{what}; delete that folder to attack anew")
    pictures, _ = checkpoint.load(pictures_path)
    try:
        train, test = (Reconstruction.from_tensors(name, pictures) for name in ("train", "test"))
    except KeyError as error:
        raise CheckpointError(
            f"{pictures_path} is of an older version (it has no {error}); delete {folder} to attack anew"
        ) from error
    return Attacked(result, train, test, _originals(images, test))


def _originals(images: ImageSet, found: Reconstruction) -> Tensor:
    return images.float(found.index[: len(found.pixels)]).cpu()


def _sample(images: ImageSet, count: int, seed: int) -> ImageSet:
    if len(images) <= count:
        return images
    return images.subset(torch.randperm(len(images), generator=generator(seed, "sample"))[:count])
