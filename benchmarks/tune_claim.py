"""Does the search keep its promise? Measured on the digits, over several splits, on images that it never saw.

    python benchmarks/tune_claim.py --folder runs/tune-claim --seeds 0 1 2 --grid 0 1

For each seed the 1,797 digits are split anew into training and test images, `tune` searches on the training images, and
the same trainings are measured on the test images. For the seeds in `--grid` the whole grid is trained too, which shows
how much of the best error the search keeps. The same command resumes what was interrupted; `--minutes` ends it cleanly.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sfumato import data
from sfumato.files import write_json
from sfumato.provenance import evidence
from sfumato.studies import BASELINE, Floor, LocalExecutor, Setting, Space, Store, run_trials, tune
from sfumato.studies.judge import Book, Measured
from sfumato.studies.space import Training
from sfumato.studies.tune_trials import ConfiguredTrial
from sfumato.training import TrainConfig

__all__ = ["CONFIG", "FLOOR", "judge_seed", "main", "summarise"]

FLOOR = Floor(lose_at_most=1.0)
# The demo's network, narrower and with shorter trainings, so that ten searches fit half an hour of one core.
CONFIG = TrainConfig(
    data="digits",
    model="digits",
    cut=4,
    width=8,
    epochs=10,
    batch_size=64,
    lr=0.1,
    augment=False,
    clusters_per_class=1,
    precision="fp32",
    device="cpu",
)


def main(words: Sequence[str] | None = None) -> None:
    """Parse, measure what is missing, write `claim.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/tune-claim"))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(10)))
    parser.add_argument("--grid", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=None)
    parsed = parser.parse_args(words)
    deadline = None if parsed.minutes is None else time.time() + 60 * parsed.minutes
    lines = []
    for seed in parsed.seeds:
        if (line := _seed(parsed.folder, seed, parsed.workers, deadline, grid=False)) is not None:
            lines.append(line)
            write_json(parsed.folder / "claim.json", summarise(lines))
    for seed in parsed.grid:
        if (line := _seed(parsed.folder, seed, parsed.workers, deadline, grid=True)) is not None:
            lines = [line if one["seed"] == seed else one for one in lines]
            write_json(parsed.folder / "claim.json", summarise(lines))


def _seed(folder: Path, seed: int, workers: int | None, deadline: float | None, *, grid: bool) -> dict[str, Any] | None:
    """One split: the search, and its measurement; None where the time was up."""
    minutes = None if deadline is None else (deadline - time.time()) / 60
    if minutes is not None and minutes <= 0:
        return None
    sets = data.load("digits", seed=seed)
    config, space = replace(CONFIG, seed=seed), Space(seed=seed)
    place = folder / f"seed{seed}"
    result = tune(
        config,
        FLOOR,
        place,
        space=space,
        images=sets.train,
        fresh=sets.test,
        minutes=minutes,
        workers=workers,
    )
    if result["status"] == "unfinished":
        return None
    store, work = Store(place / "trials", locks=place / "work" / "locks"), place / "work"
    wanted = [Training(setting, fold) for setting in space.settings for fold in range(space.folds)]
    trials = {
        training: ConfiguredTrial(training, space, config, sets.train, sets.test)
        for training in (*space.baseline_trainings, *wanted)
    }
    if grid:
        with LocalExecutor(workers) as executor:
            run_trials(list(trials.values()), executor, store, work, deadline=deadline)
    read = {training: store.read(trial.key) for training, trial in trials.items()}
    found = {training: record for training, record in read.items() if record is not None}
    if grid and len(found) < len(trials):
        return None
    line = judge_seed(found, space, result["chosen"], whole=grid)
    return {"seed": seed, "status": result["status"], "trainings": result["trainings"], **line}


def judge_seed(
    records: dict[Training, dict[str, Any]], space: Space, chosen: dict[str, Any] | None, *, whole: bool
) -> dict[str, Any]:
    """What the search chose, on the test images, and against the best of the whole grid.

    Args:
        records: of the trainings, each with what it shows on the test images.
        space: of the search.
        chosen: row of `tune.json`, or None.
        whole: whether `records` holds the whole grid.

    Returns:
        `lost`: share of accuracy lost on the test images, the three trainings of the setting against the baseline's;
        `met`: whether that is within the floor; `error`: the attacker's on the test images; with the whole grid also
        `best_error`, the largest among all settings that meet the floor on the same test images, and `kept`, the ratio.
    """
    book = Book({trial: Measured.of(one["fresh"]) for trial, one in records.items()}, FLOOR, space)
    line: dict[str, Any] = {
        "noise_std": None if chosen is None else chosen["noise_std"],
        "lam": None if chosen is None else chosen["lam"],
        "baseline_accuracy": book.accuracy(BASELINE),
        "baseline_error": book.error(BASELINE),
    }
    if chosen is not None:
        setting = Setting(chosen["noise_std"], chosen["lam"])
        loss = book.loss(setting)
        line |= {
            "lost": loss.mean,
            "lost_each": [_lost(records, space, setting, fold) for fold in range(space.folds)],
            "met": loss.mean <= FLOOR.margin,
            "error": book.error(setting),
        }
    if whole:
        meeting = [one for one in space.settings if book.slack(one, "both").mean >= 0]
        best = max(meeting, key=book.error, default=None)
        if best is not None:
            line |= {"best_noise_std": best.noise_std, "best_lam": best.lam, "best_error": book.error(best)}
            line["kept"] = 0.0 if chosen is None else line["error"] / line["best_error"]
    return line


def _lost(records: dict[Training, dict[str, Any]], space: Space, setting: Setting, fold: int) -> float:
    """Of one training against the baseline's on the same fold."""

    def accuracy(trial: Training) -> float:
        return float(Measured.of(records[trial]["fresh"]).right.mean())

    baselines = [accuracy(Training(BASELINE, fold, repeat)) for repeat in range(space.baselines)]
    return statistics.fmean(baselines) - accuracy(Training(setting, fold))


def summarise(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The claim's figures: seeds that met the floor, and the share of the best error that was kept."""
    kept = [line["kept"] for line in lines if "kept" in line]
    lost = [line["lost"] for line in lines if "lost" in line]
    return {
        "seeds": len(lines),
        "found": sum(line["status"] == "found" for line in lines),
        "met": sum(line.get("met", False) for line in lines),
        "mean_lost": statistics.fmean(lost) if lost else None,
        "whole_grids": len(kept),
        "mean_kept": statistics.fmean(kept) if kept else None,
        "mean_trainings": statistics.fmean(line["trainings"] for line in lines) if lines else None,
        "grid_trainings": len(Space().settings) * Space().folds + len(Space().baseline_trainings),
        "lines": list(lines),
        "floor": FLOOR.describe(),
        "config": CONFIG.as_dict(),
        "space": Space().as_dict(),
        "evidence": evidence("cpu") | {"threads": 1},
    }


if __name__ == "__main__":
    main()
