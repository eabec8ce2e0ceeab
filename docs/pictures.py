"""Makes the pictures of docs/concepts.md and of the first page: `python docs/pictures.py [runs]`.

The models are those of `sfumato demo`, seed 0. What the demo has left in runs/demo is taken from there.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib import pyplot as plt
from matplotlib.patches import Circle
from torch import Tensor

from sfumato import data
from sfumato.experiments.demo import DEFENSES, NOISE_STD, digit_job
from sfumato.experiments.pool import run_jobs
from sfumato.report.pictures import save_side_by_side
from sfumato.training import load_run, train_run

ASSETS = Path(__file__).parent / "assets"
_NAMES = {"none": "no defence", "noise": "noise", "noise+cem": "noise + CEM"}
_SHOWN = 10


def main() -> int:
    """Write both pictures; the argument is the folder of the trainings."""
    runs = Path(sys.argv[1] if len(sys.argv) > 1 else "runs")
    lines = run_jobs([digit_job(name, seed=0, noise_std=NOISE_STD) for name in DEFENSES], runs / "demo" / "jobs")
    redrawn = {_NAMES[line["defense"]]: _images(line["redrawn"]) for line in lines}
    save_side_by_side(ASSETS / "redrawn.png", _images(lines[0]["originals"]), redrawn)
    matplotlib.rcParams.update({"svg.hashsalt": "sfumato", "font.size": 10})
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
    for axis, name in zip(axes, ("noise", "noise+cem"), strict=True):
        features, labels = unseen_features(name, runs / "pictures" / name)
        _draw(axis, features, labels, _NAMES[name])
    figure.savefig(ASSETS / "clusters.svg", metadata={"Date": None})
    return 0


def _images(values: list[Any]) -> Tensor:
    return torch.tensor(values[:_SHOWN], dtype=torch.uint8).float() / 255


def unseen_features(defense: str, folder: Path) -> tuple[Tensor, Tensor]:
    """z_hat of the unseen digits, (N, D), and their classes, for a model of the demo."""
    config = replace(digit_job(defense, seed=0, noise_std=NOISE_STD).train, device="cpu")
    train_run(config, folder)
    test = data.load("digits", seed=0).test
    with torch.no_grad():
        return load_run(folder).model.eval().features(test.float()).flatten(1), test.labels


def _draw(axis: plt.Axes, features: Tensor, labels: Tensor, title: str) -> None:
    """The plane of three class means, in which distances are those of the feature space."""
    chosen = [0, 1, 4]
    means = torch.stack([features[labels == one].mean(0) for one in chosen])
    plane = torch.linalg.svd(means - means.mean(0), full_matrices=False).Vh[:2]
    flat = (features - means.mean(0)) @ plane.T
    for one, colour in zip(chosen, ("#1b7f79", "#b3541e", "#5b4b8a"), strict=True):
        own = flat[labels == one]
        axis.scatter(own[:, 0], own[:, 1], s=14, color=colour, alpha=0.8, linewidths=0, label=f"digit {one}")
    axis.add_patch(Circle(tuple(flat[labels == 0].mean(0)), NOISE_STD, fill=False, color="black", linewidth=1.2))
    axis.set(title=title, aspect="equal", adjustable="datalim")
    axis.tick_params(labelsize=8)
    if title == _NAMES["noise"]:
        axis.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    sys.exit(main())
