"""Results as experiments would leave them, with figures that the tests choose."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sfumato.studies.engine import Store
from sfumato.studies.experiment import Experiment

Numbers = Callable[[Experiment], dict[str, float]]


def result_of(experiment: Experiment, accuracy: float, mse: float, **more: Any) -> dict[str, Any]:
    """A result whose trained attacks have `mse` on unseen and half of it on training images, `nearest` 0.96 of both."""
    part = {"mse": mse, "psnr": 20.0, "ssim": 0.5, "mse_error": 0.0}

    def attack(factor: float, history: list[float]) -> dict[str, Any]:
        return {
            "train": part | {"mse": factor * mse / 2},
            "test": part | {"mse": factor * mse},
            "converged": True,
            "reason": "",
            "history": history,
            "trivial_mse": 0.06,
            "mean_image_mse": 0.06,
            "seconds": 1.0,
        }

    trained = {name: attack(1.0, [0.05, *[0.02] * 15]) for name in experiment.identity()["attacks"]}
    return {
        "hash": experiment.digest,
        "row": experiment.row,
        "cem": experiment.train.cem,
        "seed": experiment.train.seed,
        "noise_std": experiment.train.noise_std,
        "lam": experiment.train.lam if experiment.train.cem else 0.0,
        "accuracy": accuracy,
        "information_bounds": {"held_out": 20.0, "standard_error": 0.5},
        "attacks": trained | {"ridge": attack(1.2, []), "nearest": attack(0.96, [])},
        "strongest": "nearest",
        "leakage": {"identified": 0.5, "information": 10.0, "identified_at_most": 0.9},
        "caveat": "made up",
        "seconds": 1.0,
        "attack_seconds": 2.0,
        "data": "none",
        "evidence": {"device": "a machine", "torch": "2"},
        **more,
    }


def filled(folder: Path, experiments: list[Experiment], numbers: Numbers) -> Store:
    """A store with a result for every experiment."""
    store = Store(folder)
    for experiment in experiments:
        store.write(experiment.key, result_of(experiment, **numbers(experiment)))
    return store
