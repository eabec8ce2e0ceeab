"""From settings to a split model and its defences."""

from typing import Any

import torch

from sfumato import models
from sfumato.data import ImageSet
from sfumato.defenses import Defense, DefenseLine, Site
from sfumato.errors import ConfigError
from sfumato.seeds import derive_seed
from sfumato.split import SplitModel
from sfumato.training.config import TrainConfig

__all__ = ["build_defenses", "build_model"]


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
