"""What else can be read: attributes, from what leaves the device or from a reconstructed image."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.attacks.base import Attack, Observer, hold_out
from sfumato.data import ImageSet
from sfumato.errors import ConfigError
from sfumato.seeds import generator
from sfumato.split import SplitModel
from sfumato.torch_utils import evaluating

__all__ = ["ATTRIBUTES", "Probe", "attributes_of", "probe_attribute"]

_PENALTIES = (1e-3, 1e-1, 1e1)
_STEPS = 60
_DRAWS = 2  # releases of each of the attacker's images to learn from


@dataclass(frozen=True)
class Probe:
    """How often something is read correctly.

    Attributes:
        what: name of the attribute.
        source: `feature` or `reconstruction`.
        accuracy: share of images.
        error: its standard error, `sqrt(accuracy (1 - accuracy) / images)`.
        chance: accuracy of always giving the commonest answer of the attacker's images.
        images: how many were probed.

    >>> Probe("class", "feature", accuracy=0.9, error=0.03, chance=0.1, images=100).accuracy
    0.9
    """

    what: str
    source: str
    accuracy: float
    error: float
    chance: float
    images: int


_MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "brightness": lambda x: x.flatten(1).mean(1),
    "contrast": lambda x: x.flatten(1).std(1),
    "asymmetry": lambda x: (x - x.flip(3)).abs().flatten(1).mean(1),
}
ATTRIBUTES = (*_MEASURES, "colour", "class")
"""Attributes that every set of images has: three measures above or below the median of the attacker's images, the
channel with the largest mean, and the class."""


def attributes_of(known: ImageSet, others: ImageSet, name: str) -> tuple[Tensor, Tensor]:
    """An attribute of the attacker's images and of others, as class numbers (N,) and (M,).

    Raises:
        ConfigError: there is no such attribute.
    """
    if name == "class":
        return known.labels, others.labels
    if name == "colour":
        first, second = (part.float().mean((2, 3)).argmax(1) for part in (known, others))
        return first, second
    if name not in _MEASURES:
        raise ConfigError(f"unknown attribute {name!r}; choose one of {', '.join(ATTRIBUTES)}")
    mine, theirs = (_MEASURES[name](part.float()) for part in (known, others))
    median = mine.median()
    return (mine > median).long(), (theirs > median).long()


def probe_attribute(
    observer: Observer,
    model: SplitModel,
    images: ImageSet,
    name: str,
    *,
    labels: tuple[Tensor, Tensor] | None = None,
    attack: Attack | None = None,
    seed: int = 0,
) -> Probe:
    """Read an attribute of unseen images with a linear classifier that learned on the attacker's images.

    Softmax regression on the whitened feature, or on images, with an L2 penalty chosen on held-out images, by L-BFGS.

    Args:
        observer: what the attacker sees.
        model: the victim.
        images: unseen by attacker and victim.
        name: one of `ATTRIBUTES`, or what `labels` is to be called.
        labels: class numbers of the attacker's images and of `images`; None computes the attribute called `name`.
        attack: a fitted attack whose reconstructed images are read; None reads the feature itself.
        seed: of the noise.

    Raises:
        ConfigError: an unknown attribute, or labels that do not fit the images.

    >>> import sfumato
    >>> sets = sfumato.data.load("digits", None, seed=0)
    >>> model = SplitModel(torch.nn.Flatten(), sfumato.Channel(noise_std=1.0), torch.nn.Linear(64, 10))
    >>> found = probe_attribute(Observer(model, sets.train), model, sets.test, "class")
    >>> print(f"{found.accuracy:.2f}, by chance {found.chance:.2f}")
    0.38, by chance 0.10
    """
    mine, theirs = labels if labels is not None else attributes_of(observer.images, images, name)
    if len(mine) != len(observer) or len(theirs) != len(images):
        raise ConfigError(
            f"{name} has {len(mine)} and {len(theirs)} labels for {len(observer)} and {len(images)} images"
        )
    judge, learn = hold_out(len(observer), 0.1, seed)
    device, noise = observer.device, generator(seed, "probe", device=observer.device)

    def reads(seen: Tensor) -> Tensor:
        return (seen if attack is None else attack.answer(seen)).flatten(1)

    def own(indices: Tensor) -> Tensor:
        return torch.cat([reads(observer.pairs(part, noise)[1]) for part in observer.parts(indices)])

    rows = torch.cat([own(learn) for _ in range(_DRAWS)])
    answers = mine[learn].repeat(_DRAWS).to(device)
    mean = rows.mean(0)
    std = (rows - mean).square().mean().sqrt() + 1e-8  # one for all: a rotated feature stays a rotated feature
    classes = int(max(mine.max(), theirs.max())) + 1
    checked, truth = (own(judge) - mean) / std, mine[judge].to(device)

    def right(weights: Tensor) -> float:
        return float((_scores(checked, weights).argmax(1) == truth).double().mean())

    best = max((_softmax_regression((rows - mean) / std, answers, classes, one) for one in _PENALTIES), key=right)
    with evaluating(model):
        parts = observer.parts(torch.arange(len(images)))
        released = [model.encode(images.float(part).to(device), noise) for part in parts]
    shown = (torch.cat([reads(observer.seen(z)) for z in released]) - mean) / std
    correct = (_scores(shown, best).argmax(1).cpu() == theirs).double()
    share, chance = float(correct.mean()), float((theirs == mine.bincount().argmax()).double().mean())
    source = "feature" if attack is None else "reconstruction"
    return Probe(name, source, share, (share * (1 - share) / len(correct)) ** 0.5, chance, len(correct))


def _softmax_regression(x: Tensor, labels: Tensor, classes: int, penalty: float) -> Tensor:
    """Weights (D + 1, classes) that minimise mean cross-entropy + penalty |W|^2 / (2 D), last row unpenalised."""
    weights = torch.zeros(x.shape[1] + 1, classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(_scores(x, weights), labels) + penalty * weights[:-1].square().sum() / (2 * x.shape[1])
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weights.detach()


def _scores(x: Tensor, weights: Tensor) -> Tensor:
    return x @ weights[:-1] + weights[-1]
