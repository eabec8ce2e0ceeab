"""Tuning: trainings from settings or with a function of the user's own, and what a search found in plain sentences."""

import json
import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sfumato import defenses
from sfumato.compute import device_of
from sfumato.cores import usable_cores
from sfumato.data import ImageSet
from sfumato.errors import CheckpointError, ConfigError, DataError
from sfumato.files import read_json, write_json, write_text
from sfumato.provenance import evidence
from sfumato.studies.engine import Report, Store, Trial, run_trials
from sfumato.studies.executor import Executor, Here
from sfumato.studies.judge import Book
from sfumato.studies.local import LocalExecutor
from sfumato.studies.search import Progress, Record, Searched, search
from sfumato.studies.space import BASELINE, Floor, Setting, Space, Training
from sfumato.studies.tune_trials import ConfiguredTrial, OwnTrial, Train, config_of, parts, train_yaml
from sfumato.training import TrainConfig, load_data


def describe(found: Searched, floor: Floor) -> dict[str, Any]:
    """`status`, `headline`, `notes`, `chosen`, `baseline`, `curve` and `asked` of `tune.json`.

    `status` is `found`, `none` (no setting meets the floor) or `unfinished` (the budget ended first).
    """
    book = found.book
    curve = [_row(found, setting) for setting in book.settings()]
    chosen = next((row for row in curve if row["verdict"] == "chosen"), None)
    baseline = None
    if shown := book.measurements(BASELINE):
        baseline = _protection(book, BASELINE) | {"trainings": len(shown)}
    return {
        "status": "unfinished" if found.stopped else "none" if chosen is None else "found",
        "headline": _headline(chosen, baseline, floor, found.stopped),
        "notes": _notes(found, chosen, floor),
        "chosen": chosen,
        "baseline": baseline,
        "curve": curve,
        "asked": [one.as_dict() for one in found.asked],
    }


def _row(found: Searched, setting: Setting) -> dict[str, Any]:
    book = found.book
    both, confirming = book.loss(setting), book.loss(setting, "confirming")
    if setting == found.chosen:
        verdict = "chosen"
    elif book.fails(setting):
        verdict = "fails"
    elif not book.complete(setting):
        verdict = "not followed"
    elif not book.passes(setting):
        verdict = "not shown to meet it"
    else:
        verdict = "not confirmed" if setting in found.asked else "meets it"
    return setting.as_dict() | {
        "trainings": len(book.measurements(setting)),
        "images": both.images,
        "accuracy_selecting": book.accuracy(setting, "selecting"),
        "accuracy_confirming": book.accuracy(setting, "confirming"),
        "loss": both.mean,
        "loss_se": _finite(both.error),
        "loss_confirming": confirming.mean,
        "loss_confirming_se": _finite(confirming.error),
        "error_confirming": book.error(setting, "confirming"),
        **_protection(book, setting),
        "converged": book.converged(setting),
        "verdict": verdict,
    }


def _protection(book: Book, setting: Setting) -> dict[str, Any]:
    return {
        "accuracy": book.accuracy(setting),
        "error": book.error(setting),
        "strongest": book.strongest(setting),
        **{name: book.leakage(setting, name) for name in ("identified", "information")},
    }


def _headline(chosen: dict[str, Any] | None, baseline: dict[str, Any] | None, floor: Floor, stopped: str | None) -> str:
    if chosen is None or baseline is None:
        if stopped:
            return (
                f"No setting is known yet to meet the floor; --{stopped} ended the search, the same command resumes it."
            )
        return f"No setting on this grid is shown to meet the floor ({floor.describe()})."
    setting = Setting.of(chosen).describe()
    text = (
        f"{setting[:1].upper() + setting[1:]}: {_points(chosen['loss_confirming'])} on held-out images that chose "
        f"nothing, the strongest attacker's error {chosen['error_confirming']:.4f} instead of {baseline['error']:.4f}"
    )
    if chosen["identified"] is not None and baseline["identified"] is not None:
        text += f", identified {chosen['identified']:.0%} instead of {baseline['identified']:.0%}"
    return (
        f"So far: {text}. The search was stopped by --{stopped}; the same command resumes it."
        if stopped
        else f"{text}."
    )


def _notes(found: Searched, chosen: dict[str, Any] | None, floor: Floor) -> list[str]:
    book, space, notes = found.book, found.book.space, []
    if chosen is not None:
        spread = chosen["loss_se"] or 0.0
        notes.append(
            f"Floor: {floor.describe()}. On all {chosen['images']} held-out images {_points(chosen['loss'])} "
            f"(± {100 * spread:.1f}), with {space.confidence:.0%} confidence at most "
            f"{100 * (chosen['loss'] + book.quantile * spread):.1f} points lost."
        )
        if chosen["lam"] == space.lams[-1]:
            notes.append(
                f"Lambda {chosen['lam']:g} is the largest that was tried; a larger one may protect better: --lams."
            )
        if chosen["lam"] == 0:
            notes.append("It did better without CEM than with it here.")
    elif not found.stopped:
        notes += _why_none(book, floor)
    if len(found.asked) > 1:
        notes.append(
            f"{len(found.asked)} settings were asked for confirmation one after another, which makes the "
            "confirming half a little less independent each time."
        )
    if any(book.converged(one) is False for one in book.settings()):
        notes.append("Some attacks had not converged: their errors are no evidence of safety.")
    return notes


def _why_none(book: Book, floor: Floor) -> list[str]:
    if not book.settings():
        reached = f"The undefended baseline itself reaches {book.accuracy(BASELINE):.1%}; nothing was searched."
        return [f"{reached} Train longer, or ask less."]
    best = max(book.settings(), key=lambda one: book.slack(one, "both").mean)
    slack, loss = book.slack(best, "both"), book.loss(best)
    notes = [f"The closest is {best.describe()}: {_points(loss.mean)} (± {100 * loss.error:.1f})."]
    if slack.mean >= 0:
        notes.append(
            f"It meets the floor on average, but {slack.images} held-out images do not show it with "
            f"{book.space.confidence:.0%} confidence: use more images, or a lower --confidence."
        )
    else:
        notes.append("Try weaker settings (--noise-stds, --lams), or a lower floor.")
    return notes


def _points(loss: float) -> str:
    points = 100 * loss
    if abs(points) < 0.05:
        return "no accuracy lost"
    return f"{points:.1f} points lost" if points > 0 else f"{-points:.1f} points gained"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


_LEAST = 40  # held-out images per half: below, one of them is more than two points
_SEARCHED = ("noise_std", "cem", "lam")


def tune(
    config: TrainConfig,
    floor: Floor,
    folder: Path,
    *,
    space: Space | None = None,
    images: ImageSet | None = None,
    fresh: ImageSet | None = None,
    trainings: int | None = None,
    minutes: float | None = None,
    workers: int | None = None,
    plugins: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Find the defence, noise and lambda that protect most and meet the floor, and write `tune.json` and `train.yaml`.

    Every training is a file in `folder`/trials; an interrupted search resumes there, a running training from its
    checkpoint. `search.json` says what the folder is a search for.

    Args:
        config: of all trainings: network, data, defence. Its `noise_std`, `cem` and `lam` are what is searched,
            and its defence where the space names several.
        floor: to be met on held-out images.
        folder: of the search.
        space: the grid, and how it is judged.
        images: to learn from and to hold out; None reads the training images that `config` names.
        fresh: images on which every trained model is measured besides, for judging the search, which never reads it.
        trainings: the most over all calls; None: as many as the search needs.
        minutes: of this call; None: no limit.
        workers: processes side by side; None: one per core, and one on a GPU.
        plugins: files that register defences.
        progress: called after every training.

    Returns:
        What `tune.json` holds; `status` is `found`, `none` or `unfinished`.

    Raises:
        ConfigError: the baseline is at chance, the images are too few for the floor, or a defence is unknown.
        CheckpointError: the folder belongs to another search.
    """
    space = space or Space()
    for plugin in plugins:
        defenses.load_plugin(plugin)
    for name in {config.defense, *space.defenses} - {"none"}:
        defenses.build(name, **(config.defense_options if name == config.defense else {}))
    given = images if images is not None else load_data(config).train
    identity = {name: value for name, value in config.identity().items() if name not in _SEARCHED}
    device = device_of(config.device)
    if workers is None and device.type == "cuda":
        workers = 1
    # No more threads than this process may have: OMP_NUM_THREADS=1 is for all of them.
    side_by_side = min(len(space.settings) * space.folds, workers or usable_cores())
    threads = max(1, min(torch.get_num_threads(), usable_cores() // side_by_side))
    with LocalExecutor(side_by_side, threads) as executor:
        result = _tune(
            lambda training: ConfiguredTrial(training, space, config, images, fresh),
            executor, given, floor, space, folder, identity, trainings, minutes, plugins, progress,
        )  # fmt: skip
    result |= {"config": config.as_dict(), "evidence": evidence(device)}
    settings = folder / "train.yaml"
    if (chosen := result["chosen"]) is not None:
        final = config_of(Setting.of(chosen), config)
        write_text(settings, train_yaml(final))
        words = ["--config", str(settings), *(["--plugin", *plugins] if plugins else []), "--run", f"{folder}/model"]
        result |= {"settings": final.as_dict(), "command": shlex.join(["sfumato", "train", *words])}
    else:
        settings.unlink(missing_ok=True)  # of an earlier call with a larger budget
    write_json(folder / "tune.json", result)
    return result


def tune_with(
    train: Train,
    images: ImageSet,
    floor: Floor,
    folder: Path,
    *,
    name: str,
    space: Space | None = None,
    trainings: int | None = None,
    minutes: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`tune` with a training of your own, called in this process.

    Args:
        train: `(images, lam, noise_std, seed) -> SplitModel`, trained; with both strengths 0 the undefended baseline.
        images: to learn from and to hold out.
        floor: as for `tune`.
        folder: as for `tune`.
        name: what `train` is; change it whenever `train` changes, so that old results are not taken for its own.
        space: as for `tune`.
        trainings: as for `tune`.
        minutes: as for `tune`; a training that runs is not interrupted.
        progress: as for `tune`.

    Raises:
        ConfigError: as for `tune`; `train` gives no SplitModel, or the space holds defences: what `train` does is one.
        CheckpointError: the folder belongs to another search.
    """
    space = space or Space()
    if space.defenses:
        raise ConfigError("a training of your own is one defence; search each with a name and a folder of its own")
    result = _tune(
        lambda training: OwnTrial(training, space, train, images),
        Here(), images, floor, space, folder, {"name": name}, trainings, minutes, (), progress,
    )  # fmt: skip
    result |= {"name": name, "evidence": evidence("cpu")}
    write_json(folder / "tune.json", result)
    return result


def _tune(
    trial: Callable[[Training], Trial],
    executor: Executor | Here,
    images: ImageSet,
    floor: Floor,
    space: Space,
    folder: Path,
    identity: dict[str, Any],
    trainings: int | None,
    minutes: float | None,
    plugins: Sequence[str],
    progress: Progress | None,
) -> dict[str, Any]:
    if trainings is not None and trainings < 1:
        raise ConfigError(f"trainings is {trainings}; give at least 1")
    if minutes is not None and not minutes > 0:
        raise ConfigError(f"minutes is {minutes:g}; give a positive number")
    began, deadline = time.monotonic(), None if minutes is None else time.time() + 60 * minutes
    _check_images(images, floor, space)
    _claim(folder, identity | asdict(floor) | space.as_dict() | {"data_fingerprint": images.fingerprint()})
    work = folder / "work"
    store = Store(folder / "trials", locks=work / "locks")

    def measure(wanted: Sequence[Training], report: Report) -> Mapping[Training, Record]:
        trials = {training: trial(training) for training in wanted}
        run_trials(list(trials.values()), executor, store, work, deadline=deadline, plugins=plugins, report=report)
        found = {training: store.read(one.key) for training, one in trials.items()}
        return {training: record for training, record in found.items() if record is not None}

    chance = float(images.labels.bincount().max()) / len(images)
    found = search(floor, space, measure, chance=chance, trainings=trainings, progress=progress)
    return describe(found, floor) | {
        "floor": asdict(floor) | {"words": floor.describe()},
        "space": space.as_dict(),
        "trainings": len(found.records),
        "grid_trainings": len(space.settings) * space.folds + len(space.baseline_trainings),
        "training_seconds": round(sum(record["seconds"] for record in found.records.values()), 1),
        "seconds": round(time.monotonic() - began, 1),
        "images": len(images),
        "warnings": sorted({text for record in found.records.values() for text in record.get("warnings", ())}),
        "data": images.fingerprint(),
    }


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Write what the folder is a search for, or check that it is the same search."""
    mine = json.loads(json.dumps(identity))  # tuples become lists, as in the file
    path = folder / "search.json"
    if not path.exists():
        write_json(path, mine)
    elif (theirs := read_json(path)) != mine:
        names = [name for name in {**theirs, **mine} if theirs.get(name) != mine.get(name)]
        changed = ", ".join(f"{name} {_short(theirs.get(name))} -> {_short(mine.get(name))}" for name in names)
        raise CheckpointError(f"{folder} holds another search ({changed}); choose another --run folder")


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _check_images(images: ImageSet, floor: Floor, space: Space) -> None:
    """Refuse sets whose halves cannot show what the floor asks for."""
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
