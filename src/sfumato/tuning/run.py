"""Tuning from settings, trained in processes of this machine, or with a function of the user's own, called here."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sfumato import defenses
from sfumato.attacks import CLOSED_FORM
from sfumato.compute import device_of
from sfumato.data import ImageSet
from sfumato.errors import ConfigError, DataError, Interrupted
from sfumato.evidence import evidence
from sfumato.execution import LocalExecutor, usable_cores
from sfumato.files import write_text
from sfumato.split import SplitModel
from sfumato.training import TrainConfig, load_data
from sfumato.tuning.floor import Floor
from sfumato.tuning.folder import SearchFolder
from sfumato.tuning.measure import fitted, measured, parts
from sfumato.tuning.outcome import describe
from sfumato.tuning.recipe import train_command, train_yaml
from sfumato.tuning.search import Limits, Progress, Run, search
from sfumato.tuning.space import Setting, Space, Trial
from sfumato.tuning.trial import Task, config_of, readable, run_task, training_seed, trial_key

__all__ = ["Train", "tune", "tune_with"]

Train = Callable[[ImageSet, float, float, int], SplitModel]
"""`(images to learn from, lam, noise_std, seed) -> trained split model`; both strengths 0: the undefended baseline."""

_LEAST = 40  # held-out images per half: below, one of them is more than two points


def tune(
    config: TrainConfig,
    floor: Floor,
    folder: Path,
    *,
    space: Space | None = None,
    images: ImageSet | None = None,
    fresh: ImageSet | None = None,
    limits: Limits | None = None,
    workers: int | None = None,
    plugins: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Find the defence, noise and lambda that protect most and meet the floor, and write `tune.json` and `train.yaml`.

    Every training is a file in `folder`; an interrupted search goes on there, a running training from its checkpoint.

    Args:
        config: of all trainings: network, data, defence. Its `noise_std`, `cem` and `lam` are what is searched,
            and its defence where the space names several.
        floor: to be met on held-out images.
        folder: of the search.
        space: the grid, and how it is judged.
        images: to learn from and to hold out; None reads the training images that `config` names.
        fresh: images on which every trained model is measured besides, for judging the search, which never reads it.
        limits: on trainings and minutes.
        workers: processes side by side; None: one per core, and one on a GPU.
        plugins: files that register defences.
        progress: called after every training.

    Returns:
        What `tune.json` holds; `status` is `found`, `none` or `unfinished`.

    Raises:
        ConfigError: the baseline is at chance, the images are too few for the floor, or a defence is unknown.
        CheckpointError: the folder belongs to another search.
    """
    space, limits = space or Space(), limits or Limits()
    paths = tuple(str(Path(plugin).resolve()) for plugin in plugins)
    for plugin in paths:
        defenses.load_plugin(plugin)
    if config.defense != "none":
        defenses.build(config.defense, **config.defense_options)
    for name in set(space.defenses) - {"none"}:
        defenses.build(name)
    given = images if images is not None else load_data(config).train
    _check_images(given, floor, space)
    place = SearchFolder(folder, _identity(config.identity(), floor, space, given))
    deadline = limits.deadline()

    def task(trial: Trial) -> Task:
        return Task(trial, config, space, images, fresh, place.work, deadline, paths)

    with _processes(task, config, workers, deadline, len(space.settings) * space.folds) as run:
        result = _search(
            floor, space, place, lambda trial: trial_key(trial, config, space), run, given, limits, progress
        )
    result |= {"config": config.as_dict(), "evidence": evidence(device_of(config.device))}
    if (own := result["chosen"]) is not None:
        final = config_of(Setting.of(own), config)
        result |= {"settings": final.as_dict(), "command": train_command(final, f"{folder}/model", tuple(plugins))}
        write_text(folder / "train.yaml", train_yaml(final))
    else:
        (folder / "train.yaml").unlink(missing_ok=True)  # of an earlier call with a larger budget
    place.finish(result)
    return result


def tune_with(
    train: Train,
    images: ImageSet,
    floor: Floor,
    folder: Path,
    *,
    name: str,
    space: Space | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`tune` with a training of your own, called in this process.

    Args:
        train: `(images, lam, noise_std, seed) -> SplitModel`, trained; with both strengths 0 the undefended baseline.
        images: to learn from and to hold out.
        floor: to be met on held-out images.
        folder: of the search.
        name: what `train` is; change it whenever `train` changes, so that old results are not taken for its own.
        space: the grid, and how it is judged.
        limits: on trainings and minutes; a training that runs is not interrupted.
        progress: called after every training.

    Returns:
        What `tune.json` holds.

    Raises:
        ConfigError: the baseline is at chance, the images are too few for the floor, `train` gives no SplitModel, or
            the space holds defences: what `train` does is one.
        CheckpointError: the folder belongs to another search.
    """
    space, limits = space or Space(), limits or Limits()
    if space.defenses:
        raise ConfigError("a training of your own is one defence; search each with a name and a folder of its own")
    _check_images(images, floor, space)
    place = SearchFolder(folder, _identity({"name": name}, floor, space, images))
    deadline = limits.deadline()

    def run(trials: Sequence[Trial]) -> Iterator[tuple[Trial, dict[str, Any]]]:
        for trial in trials:
            if deadline is not None and time.time() >= deadline:
                return
            yield trial, _own_trial(train, trial, images, space)

    def key(trial: Trial) -> str:
        return f"{readable(trial)}-{'-'.join(CLOSED_FORM)}"

    result = _search(floor, space, place, key, run, images, limits, progress)
    result |= {"name": name, "evidence": evidence("cpu")}
    place.finish(result)
    return result


def _own_trial(train: Train, trial: Trial, images: ImageSet, space: Space) -> dict[str, Any]:
    began = time.monotonic()
    learn, held = parts(images, space.folds, trial.fold, space.seed)
    seed = training_seed(space, trial)
    model = train(learn, trial.setting.lam, trial.setting.noise_std, seed)
    if not isinstance(model, SplitModel):
        raise ConfigError(
            f"train gave a {type(model).__name__}; return a trained sfumato.SplitModel(edge, channel, cloud)"
        )
    attackers = fitted(model, learn, attack=space.attack, seed=seed)
    shown = measured(model, attackers, held, draws=space.draws, seed=seed, halves=space.seed).as_dict(space.draws)
    own = trial.setting.as_dict() | {"fold": trial.fold, "repeat": trial.repeat}
    return own | shown | {"seconds": round(time.monotonic() - began, 2)}


def _search(
    floor: Floor,
    space: Space,
    place: SearchFolder,
    key: Callable[[Trial], str],
    run: Run,
    images: ImageSet,
    limits: Limits,
    progress: Progress | None,
) -> dict[str, Any]:
    began = time.monotonic()
    counts = images.labels.bincount()
    chance = float(counts.max()) / len(images)
    found = search(floor, space, place, key, run, chance=chance, trainings=limits.trainings, progress=progress)
    return describe(found, floor) | {
        "floor": floor.as_dict() | {"words": floor.describe()},
        "space": space.as_dict(),
        "trainings": len(found.records),
        "grid_trainings": len(space.settings) * space.folds + len(space.baseline_trials),
        "training_seconds": round(sum(record["seconds"] for record in found.records.values()), 1),
        "seconds": round(time.monotonic() - began, 1),
        "images": len(images),
        "warnings": sorted({text for record in found.records.values() for text in record.get("warnings", ())}),
        "data": images.fingerprint(),
    }


@contextmanager
def _processes(
    task: Callable[[Trial], Task], config: TrainConfig, workers: int | None, deadline: float | None, most: int
) -> Iterator[Run]:
    """Workers that stay for all rounds of the search."""
    if workers is None and device_of(config.device).type == "cuda":
        workers = 1

    def late() -> bool:
        return deadline is not None and time.time() >= deadline

    # No more threads than this process may have: OMP_NUM_THREADS=1 is for all of them.
    threads = max(1, min(torch.get_num_threads(), usable_cores() // min(most, workers or usable_cores())))
    with LocalExecutor(workers, threads).kept(run_task, most) as do:

        def run(trials: Sequence[Trial]) -> Iterator[tuple[Trial, dict[str, Any]]]:
            failed: list[Exception] = []
            for outcome in do([task(trial) for trial in trials], late):
                if outcome.value is not None:
                    yield outcome.item.trial, outcome.value
                elif outcome.error is not None and not isinstance(outcome.error, Interrupted):
                    failed.append(outcome.error)  # raised below: what else is running is worth keeping
            if failed:
                raise failed[0]

        yield run


def _identity(own: dict[str, Any], floor: Floor, space: Space, images: ImageSet) -> dict[str, Any]:
    searched = {"noise_std", "cem", "lam"}
    return (
        {name: value for name, value in own.items() if name not in searched}
        | floor.as_dict()
        | space.as_dict()
        | {"data_fingerprint": images.fingerprint()}
    )


def _check_images(images: ImageSet, floor: Floor, space: Space) -> None:
    """Refuse sets whose halves cannot show what the floor asks for.

    Raises:
        DataError: they are too few.
    """
    half = len(images) // 2
    if half < _LEAST:
        raise DataError(
            f"{len(images)} images are too few to tune on: half of them select and half confirm, and {half} say "
            f"nothing about points of accuracy; give at least {2 * _LEAST}"
        )
    if floor.lose_at_most is not None and half * floor.margin < 1:
        raise DataError(
            f"{len(images)} images are too few to see a loss of {floor.lose_at_most:g} points: in a half of {half} one "
            f"image is {100 / half:.1f} points; allow more, or give at least {int(2 / floor.margin) + 1} images"
        )
    for fold in range(space.folds):
        parts(images, space.folds, fold, space.seed)
