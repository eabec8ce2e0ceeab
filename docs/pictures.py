"""Makes the pictures of docs/concepts.md and of the first page: `python docs/pictures.py [runs]`.

The models are those of `sfumato demo`, seed 0. What the demo has left in runs/demo is taken from there.
"""

import sys
from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot as plt
from matplotlib.patches import Circle
from torch import Tensor

from sfumato import data
from sfumato.report.pictures import save_side_by_side
from sfumato.studies.demo import NOISE_STD, run_demo
from sfumato.training import load_run

ASSETS = Path(__file__).parent / "assets"
_NAMES = {"none": "no defence", "noise0.4": "noise 0.4", "noise+cem": "noise 0.1 + CEM"}
_SHOWN = 10


def main() -> int:
    """Write both pictures; the argument is the folder of the runs."""
    runs = Path(sys.argv[1] if len(sys.argv) > 1 else "runs")
    _, originals, reconstructed = run_demo(runs / "demo")
    rows = {_NAMES[name]: reconstructed[name][:_SHOWN] for name in _NAMES}
    save_side_by_side(ASSETS / "reconstructed.png", originals[:_SHOWN], rows)
    matplotlib.rcParams.update({"svg.hashsalt": "sfumato", "font.size": 10})
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
    for axis, name in zip(axes, ("none", "noise+cem"), strict=True):
        features, labels = unseen_features(runs / "demo" / "models" / f"{name}-s0")
        _draw(axis, features, labels, _NAMES[name])
    figure.savefig(ASSETS / "clusters.svg", metadata={"Date": None})
    return 0


def unseen_features(folder: Path) -> tuple[Tensor, Tensor]:
    """z_hat of the unseen digits, (N, D), and their classes, for a model of the demo."""
    test = data.load("digits", seed=0).test
    with torch.no_grad():
        return load_run(folder).model.features(test.float()).flatten(1), test.labels


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
    if title == _NAMES["none"]:
        axis.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    sys.exit(main())
