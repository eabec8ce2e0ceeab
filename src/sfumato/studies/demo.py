"""The demo: no defence, noise at several levels, and noise with CEM on the embedded handwritten digits."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sfumato import data
from sfumato.attacks import DecoderConfig, strongest, suite_verdict
from sfumato.cores import usable_cores
from sfumato.errors import CheckpointError
from sfumato.files import write_json
from sfumato.metrics import mse
from sfumato.provenance import evidence
from sfumato.report.averages import group
from sfumato.studies.engine import Report, Store, run_trials
from sfumato.studies.equal_accuracy import compare
from sfumato.studies.experiment import PICTURE, Experiment, read_strip
from sfumato.studies.local import LocalExecutor
from sfumato.training import TrainConfig

# The demo's defaults, all in this place. CEM is compared at equal accuracy with noise alone along NOISES.
NOISE_STD = 0.1  # of CEM
LAM = 2.0
NOISES = (0.4, 0.8)  # of noise alone, whose curve begins at no defence
SEEDS = (0, 1, 2)

_SHOWN = 10
# One cluster per class is the ideal case of section 3.4 (k = n), which the digits are close to.
_TRAIN: dict[str, Any] = {
    "data": "digits", "model": "digits", "cut": 4, "epochs": 30, "batch_size": 64, "lr": 0.1, "clusters_per_class": 1,
    "precision": "fp32", "device": "cpu", "watch": False,
}  # fmt: skip
_ATTACK: dict[str, Any] = {
    "epochs": 50, "batch_size": 128, "lr": 1e-2, "width": 16, "blocks": 1, "precision": "fp32"
}  # fmt: skip


def demo_experiments(folder: Path) -> list[Experiment]:
    """One experiment per row, all of the first seed first; each leaves its run in `folder`/models."""
    settings = [("none", 0.0), *(("noise", noise) for noise in NOISES), ("noise+cem", NOISE_STD)]
    return [
        Experiment(
            "demo",
            "digits",
            "none" if defense == "none" else "noise",
            TrainConfig(**_TRAIN, seed=seed, noise_std=noise, cem=defense == "noise+cem", lam=LAM),
            (DecoderConfig(**_ATTACK, seed=seed),),
            folder=str(folder / "models" / f"{_name(defense, noise)}-s{seed}"),
            shown=_SHOWN,
        )
        for seed in SEEDS
        for defense, noise in settings
    ]


def run_demo(
    folder: Path, *, report: Report | None = None
) -> tuple[dict[str, Any], torch.Tensor, dict[str, torch.Tensor]]:
    """Run what is missing and write `result.json`."""
    began, store, experiments = time.monotonic(), Store(folder / "jobs"), demo_experiments(folder)
    # Each worker computes on one thread: small networks gain nothing from two, and trainings side by side do.
    with LocalExecutor(threads=1) as executor:
        run_trials(experiments, executor, store, folder / "work", report=report)
    rows = [_row(one, store) for one in experiments]
    sets = data.load("digits", seed=0)
    x, mean = sets.test.float(), sets.train.float().mean(0, keepdim=True)
    trained = sum(row.pop("trial_seconds") for row in rows)
    result = {
        "rows": rows,
        "equal_accuracy": equal_accuracy(rows),
        "histories": {
            row["defense"]: history
            for row, one in zip(rows, experiments, strict=True)
            if row["seed"] == SEEDS[0] and (history := _information_history(one))
        },
        "noise_std": NOISE_STD,
        "lam": LAM,
        "mean_image_mse": float(mse(x, mean.expand_as(x)).double().mean()),
        "train_images": len(sets.train),
        "test_images": len(sets.test),
        "caveat": sets.caveat,
        # Of a resumed call at least what all trainings take on this many cores.
        "seconds": round(max(time.monotonic() - began, trained / min(len(rows), usable_cores())), 1),
        "evidence": evidence("cpu") | {"threads": 1},
    }
    write_json(folder / "result.json", result)
    first = [(row, _strip(one)) for row, one in zip(rows, experiments, strict=True) if row["seed"] == SEEDS[0]]
    pictures = {_name(row["defense"], row["noise_std"]): strip[row["strongest"]] for row, strip in first}
    return result, first[0][1]["original"], pictures


def equal_accuracy(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """CEM against noise alone at CEM's accuracy: the strongest attacker's error as a ratio, identification as a
    difference; None where there is nothing to compare.
    """
    with_cem = [row for row in rows if row["defense"] == "noise+cem"]
    levels = group([dict(row) for row in rows if row["defense"] != "noise+cem"], "noise_std")  # no defence has 0
    found = {}
    for name, measure in (("error", "mse_test"), ("identified", "identified")):
        curve, ours = (
            [{row["seed"]: (row["accuracy"], row[measure]) for row in own} for own in settings]
            for settings in ([levels[level] for level in sorted(levels)], [with_cem])
        )
        if (compared := compare(curve, *ours, higher_protects=name == "error")) is None:
            return None
        found[name] = asdict(compared)
    return found


def _name(defense: str, noise: float) -> str:
    """Levels of noise alone differ in their number."""
    return f"noise{noise:g}" if defense == "noise" else defense


def _row(experiment: Experiment, store: Store) -> dict[str, Any]:
    """The figures of the strongest attack, on training and on test images separately; `attacks` holds all of them."""
    result = store.read(experiment.key)
    if result is None:
        raise CheckpointError(f"{store.path(experiment.key)} has just been removed; run the command again")
    figures, test = result["attacks"], result["strongest"]
    train = strongest({name: one["train"]["mse"] for name, one in figures.items()})
    row = {
        "defense": result["row"] + ("+cem" if result["cem"] else ""),
        **{name: result[name] for name in ("seed", "noise_std", "lam", "accuracy")},
        "strongest": test,
        "strongest_train": train,
        **{f"{name}_train": figures[train]["train"][name] for name in ("mse", "psnr", "ssim")},
        **{f"{name}_test": figures[test]["test"][name] for name in ("mse", "psnr", "ssim")},
        **result["leakage"],
        "attacks": figures,
        "trial_seconds": result["seconds"] + result["attack_seconds"],
    }
    verdict = suite_verdict(row)
    return row | {"converged": verdict.converged, "reason": verdict.reason}


def _information_history(experiment: Experiment) -> list[float]:
    lines = (Path(str(experiment.folder)) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    epochs = [json.loads(line) for line in lines]
    return [epoch["cem_information"] for epoch in epochs if "cem_information" in epoch]


def _strip(experiment: Experiment) -> dict[str, torch.Tensor]:
    path = Path(str(experiment.folder)) / PICTURE
    if (strip := read_strip(path)) is None:
        raise CheckpointError(f"{path} is damaged; delete it and run the command again")
    return strip
