"""From settings to a split model, its defences and the learning rate of a step."""

import math
from typing import Any

import torch

from sfumato import models
from sfumato.data import ImageSet
from sfumato.defenses import Defense, DefenseLine, Site
from sfumato.errors import ConfigError
from sfumato.seeds import derive_seed
from sfumato.split import SplitModel
from sfumato.training.config import TrainConfig

__all__ = ["build_defenses", "build_model", "learning_rate"]

_WARM_UP = 0.25
_START, _END = 0.04, 0.002
_PAPER_DROPS = (60 / 240, 120 / 240, 180 / 240, 210 / 240)


def build_defenses(config: TrainConfig, num_classes: int) -> list[Defense]:
    """The defences that the settings name: `[X]`, `[CEM]`, `[X, CEM]` or none."""
    return DefenseLine.of(config).build(num_classes, seed=config.seed)


def build_model(config: TrainConfig, images: ImageSet, chosen: list[Defense], *, most: int | None = None) -> SplitModel:
    """The split model for these images, with its initial weights, which depend on the seed alone.

    The defences are attached to it: their own networks have their shapes and initial weights afterwards.

    Raises:
        ConfigError: the network has more than `most` parameters; found out before any memory is taken for them.
    """
    options: dict[str, Any] = {} if config.width is None else {"width": config.width}
    if config.bound == "none":
        options["squash"] = False
    for defense in chosen:
        options |= defense.model_options()
    options |= {
        "cut": config.cut_at,
        "num_classes": images.num_classes,
        "image_shape": images.image_shape,
        "bottleneck": config.bottleneck or None,
    }
    if most is not None:
        with torch.device("meta"):
            halves = models.build(config.network, **options)
        if (size := sum(value.numel() for half in halves for value in half.parameters())) > most:
            raise ConfigError(f"the settings say {size:,} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "weights"))
        edge, cloud = models.build(config.network, **options)
    transforms = [module for defense in chosen if (module := defense.transform()) is not None]
    model = SplitModel(edge, DefenseLine.of(config).channel(transforms=transforms), cloud)
    site = Site(model.feature_shape(images.image_shape), images.image_shape, images.num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "defenses"))
        for defense in chosen:
            defense.attach(site)
    return model


def learning_rate(name: str, peak: float, progress: float) -> float:
    """The learning rate at `progress` in [0, 1).

    - `one_cycle`: linear from 4 % to the peak over the first quarter, then along a cosine down to 0.2 %.
    - `paper`: the peak, times 0.2 at epochs 60, 120, 180 and 210 of 240 (30, 60, 90, 105 of 120).
    """
    if name == "one_cycle":
        if progress < _WARM_UP:
            return peak * (_START + (1 - _START) * progress / _WARM_UP)
        falling = (progress - _WARM_UP) / (1 - _WARM_UP)
        return peak * (_END + (1 - _END) * 0.5 * (1 + math.cos(math.pi * min(1.0, falling))))
    if name == "paper":
        return float(peak * 0.2 ** sum(progress >= drop for drop in _PAPER_DROPS))
    raise ConfigError(f"unknown learning rate schedule {name!r}; choose one_cycle or paper")
