"""Results as experiments would leave them, with figures that the tests choose."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sfumato.experiments.experiment import Experiment
from sfumato.experiments.store import Store

Numbers = Callable[[Experiment], dict[str, float]]


def result_of(experiment: Experiment, accuracy: float, mse: float, **more: Any) -> dict[str, Any]:
    """A result whose attacks all have `mse` on unseen and half of it on training images."""
    part = {"mse": mse, "psnr": 20.0, "ssim": 0.5, "mse_error": 0.0}
    attack = {
        "train": part | {"mse": mse / 2},
        "test": part,
        "converged": True,
        "reason": "",
        "mean_image_mse": 0.06,
        "seconds": 1.0,
    }
    return {
        "hash": experiment.digest,
        "row": experiment.row,
        "cem": experiment.train.cem,
        "seed": experiment.train.seed,
        "accuracy": accuracy,
        "information_bounds": {"held_out": 20.0, "standard_error": 0.5},
        "attacks": dict.fromkeys(experiment.identity()["attacks"], attack),
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
