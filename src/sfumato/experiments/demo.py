"""The demo: no defence, noise at several levels, and noise with CEM on the embedded handwritten digits."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from sfumato import data
from sfumato.attacks import DecoderConfig, suite_verdict
from sfumato.evidence import evidence
from sfumato.experiments.equal_accuracy import Comparison, Seeds, compare
from sfumato.experiments.job import Job
from sfumato.experiments.pool import Done, elapsed, run_jobs
from sfumato.files import write_json
from sfumato.metrics import mse
from sfumato.training import TrainConfig

__all__ = ["DEFENSES", "LAM", "NOISES", "NOISE_STD", "SEEDS", "demo_jobs", "digit_job", "equal_accuracy", "run_demo"]

# The demo's defaults, all in this place. CEM is compared at equal accuracy with noise alone along NOISES.
NOISE_STD = 0.1  # of CEM
LAM = 2.0
NOISES = (0.4, 0.8)  # of noise alone, whose curve begins at no defence
SEEDS = (0, 1, 2)

DEFENSES = ("none", "noise", "noise+cem")

# One cluster per class is the ideal case of section 3.4 (k = n), which the digits are close to.
_TRAIN = TrainConfig(
    data="digits",
    model="digits",
    cut=4,
    epochs=30,
    batch_size=64,
    lr=0.1,
    clusters_per_class=1,
    precision="fp32",
    device="cpu",
    watch=False,
)
_ATTACK = DecoderConfig(epochs=50, batch_size=128, lr=1e-2, width=16, blocks=1, precision="fp32")


def digit_job(defense: str, *, seed: int, noise_std: float, lam: float = LAM, fold: int | None = None) -> Job:
    """One training and its attacks on the digits."""
    train = replace(
        _TRAIN,
        seed=seed,
        noise_std=0.0 if defense == "none" else noise_std,
        cem=defense == "noise+cem",
        lam=lam,
    )
    return Job(defense, train, replace(_ATTACK, seed=seed), fold)


def demo_jobs(folder: Path) -> list[Job]:
    """One job per row, all of the first seed first; each leaves its run in `folder`/models."""
    settings = [("none", 0.0), *(("noise", noise) for noise in NOISES), ("noise+cem", NOISE_STD)]
    return [
        replace(
            digit_job(defense, seed=seed, noise_std=noise),
            folder=str(folder / "models" / f"{_name(defense, noise)}-s{seed}"),
        )
        for seed in SEEDS
        for defense, noise in settings
    ]


def run_demo(folder: Path, *, done: Done | None = None) -> tuple[dict[str, Any], torch.Tensor, dict[str, torch.Tensor]]:
    """Run what is missing and write `result.json`.

    Returns:
        The result, the original digits and, by the name of the run folder without its seed, the reconstructed ones.
    """
    began = time.monotonic()
    lines = run_jobs(demo_jobs(folder), folder / "jobs", done=done)
    sets = data.load("digits", seed=0)
    x, mean = sets.test.float(), sets.train.float().mean(0, keepdim=True)
    result = {
        "rows": [_row(line) for line in lines],
        "equal_accuracy": equal_accuracy(lines),
        "histories": {
            line["defense"]: line["information_history"]
            for line in lines
            if line["seed"] == SEEDS[0] and line["information_history"]
        },
        "noise_std": NOISE_STD,
        "lam": LAM,
        "mean_image_mse": float(mse(x, mean.expand_as(x)).double().mean()),
        "train_images": len(sets.train),
        "test_images": len(sets.test),
        "caveat": sets.caveat,
        "seconds": elapsed(began, lines),
        "evidence": evidence("cpu") | {"threads": 1},
    }
    write_json(folder / "result.json", result)
    first = [line for line in lines if line["seed"] == SEEDS[0]]
    pictures = {_name(line["defense"], line["noise_std"]): _images(line["reconstructed"]) for line in first}
    return result, _images(first[0]["originals"]), pictures


def equal_accuracy(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """CEM against noise alone at CEM's accuracy: the strongest attacker's error as a ratio, identification as a
    difference; None where there is nothing to compare.
    """
    error, identified = (_compared(rows, measure) for measure in ("mse_test", "identified"))
    if error is None or identified is None:
        return None
    return {"error": asdict(error), "identified": asdict(identified)}


def _compared(rows: Sequence[Mapping[str, Any]], measure: str) -> Comparison | None:
    def seeds(chosen: Sequence[Mapping[str, Any]]) -> Seeds:
        return {row["seed"]: (row["accuracy"], row[measure]) for row in chosen}

    with_cem = [row for row in rows if row["defense"] == "noise+cem"]
    if len({row["noise_std"] for row in with_cem}) != 1:
        return None
    without = [row for row in rows if row["defense"] != "noise+cem"]  # no defence is a noise of 0
    levels = sorted({row["noise_std"] for row in without})
    curve = [seeds([row for row in without if row["noise_std"] == level]) for level in levels]
    return compare(curve, seeds(with_cem), higher_protects=measure == "mse_test")


def _name(defense: str, noise: float) -> str:
    """Levels of noise alone differ in their number."""
    return f"noise{noise:g}" if defense == "noise" else defense


def _row(line: dict[str, Any]) -> dict[str, Any]:
    verdict = suite_verdict(line)
    dropped = ("originals", "reconstructed", "information_history", "train_config", "attack_config", "evidence", "fold")
    kept = {name: value for name, value in line.items() if name not in (*dropped, "key", "data", "job_seconds")}
    return kept | {"converged": verdict.converged, "reason": verdict.reason}


def _images(values: list[Any]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8).float() / 255
