"""The demo: no defence, noise, and noise with CEM on the embedded handwritten digits."""

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sfumato import data
from sfumato.attacks import DecoderConfig
from sfumato.evidence import evidence
from sfumato.experiments.job import Job
from sfumato.experiments.pool import Done, elapsed, run_jobs
from sfumato.files import write_json
from sfumato.training import TrainConfig

__all__ = ["DEFENSES", "LAM", "NOISE_STD", "SEEDS", "demo_jobs", "digit_job", "run_demo", "summarise"]

DEFENSES = ("none", "noise", "noise+cem")
SEEDS = (0, 1, 2)
NOISE_STD = 0.05
LAM = 2.0
_NOISES = (0.2, 0.5)
_LAMS = (0.5, 5.0)
_SHOWN_FIGURES = ("accuracy", "mse_train", "mse_test", "psnr_train", "psnr_test", "ssim_train", "ssim_test")

# One cluster per class is the ideal case of section 3.4 (k = n), which the digits are close to.
_TRAIN = TrainConfig(
    data="digits",
    model="digits",
    cut=4,
    epochs=40,
    batch_size=64,
    lr=0.1,
    clusters_per_class=1,
    precision="fp32",
    device="cpu",
)
_ATTACK = DecoderConfig(epochs=30, batch_size=64, lr=3e-3, width=32, blocks=2, precision="fp32")


def digit_job(defense: str, *, seed: int, noise_std: float, lam: float = LAM, fold: int | None = None) -> Job:
    """One training and attack on the digits."""
    train = replace(
        _TRAIN,
        seed=seed,
        noise_std=0.0 if defense == "none" else noise_std,
        cem=defense == "noise+cem",
        lam=lam,
    )
    return Job(defense, train, replace(_ATTACK, seed=seed), fold)


def demo_jobs() -> tuple[list[Job], list[Job]]:
    """The table's jobs, and those that only the curves need."""
    rows = [digit_job(defense, seed=seed, noise_std=NOISE_STD) for seed in SEEDS for defense in DEFENSES]
    sweep = [digit_job("noise", seed=0, noise_std=noise) for noise in _NOISES]
    sweep += [digit_job("noise+cem", seed=0, noise_std=NOISE_STD, lam=lam) for lam in _LAMS]
    return rows, sweep


def run_demo(folder: Path, *, done: Done | None = None) -> tuple[dict[str, Any], torch.Tensor, dict[str, torch.Tensor]]:
    """Run what is missing and write `result.json`.

    Returns:
        The result, the original digits and, per defence, the redrawn ones.
    """
    began = time.monotonic()
    rows, sweep = demo_jobs()
    found = run_jobs([*rows, *sweep], folder / "jobs", done=done)
    table = found[: len(rows)]
    sets = data.load("digits", seed=0)
    mean = sets.train.images.double().mean(0, keepdim=True)
    result = {
        "rows": [_row(line) for line in table],
        "summary": summarise(table),
        "curve": [_row(line) for line in found],
        "histories": {
            line["defense"]: line["information_history"]
            for line in table
            if line["seed"] == SEEDS[0] and line["information_history"]
        },
        "gain": _gain(table),
        "mean_image_mse": float(((sets.test.images.double() - mean) / 255).square().mean()),
        "train_images": len(sets.train),
        "test_images": len(sets.test),
        "caveat": sets.caveat,
        "seconds": elapsed(began, found),
        "evidence": evidence("cpu") | {"threads": 1},
    }
    write_json(folder / "result.json", result)
    first = [line for line in table if line["seed"] == SEEDS[0]]
    return (
        result,
        _images(first[0]["originals"]),
        {line["defense"]: _images(line["redrawn"]) for line in first},
    )


def summarise(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds, per defence."""
    summary = []
    for defense in DEFENSES:
        own = [line for line in lines if line["defense"] == defense]
        entry: dict[str, Any] = {"defense": defense, "seeds": len(own)}
        for name in _SHOWN_FIGURES:
            values = [line[name] for line in own]
            entry[name] = statistics.fmean(values)
            entry[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else 0.0
        summary.append(entry)
    return summary


def _gain(lines: list[dict[str, Any]]) -> dict[str, float]:
    by_name = {entry["defense"]: entry for entry in summarise(lines)}
    noise, cem = by_name["noise"], by_name["noise+cem"]
    return {
        "mse_ratio": cem["mse_test"] / noise["mse_test"],
        "accuracy_difference": cem["accuracy"] - noise["accuracy"],
        "noise_std": NOISE_STD,
        "lam": LAM,
    }


def _row(line: dict[str, Any]) -> dict[str, Any]:
    names = ("defense", "seed", "noise_std", "lam", *_SHOWN_FIGURES, "information", "converged", "reason")
    return {name: line[name] for name in names}


def _images(values: list[Any]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8).float() / 255
