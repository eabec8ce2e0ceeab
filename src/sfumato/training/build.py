"""From settings to a split model and its defences."""

import torch

from sfumato import models
from sfumato.cem import CEM
from sfumato.data import ImageSet
from sfumato.defenses import CEMDefense, Defense
from sfumato.seeds import derive_seed
from sfumato.split import Channel, SplitModel
from sfumato.training.config import TrainConfig

__all__ = ["build_defenses", "build_model"]


def build_defenses(config: TrainConfig, num_classes: int) -> list[Defense]:
    """The defences that the settings name."""
    if not config.cem:
        return []
    cem = CEM(
        num_classes=num_classes,
        noise_std=config.noise_std,
        clusters_per_class=config.clusters_per_class,
        covariance=config.covariance,
        scaling=config.scaling,
        update=config.update,
        seed=config.seed,
    )
    return [CEMDefense(cem, lam=config.lam, lam_schedule=config.lam_schedule, refresh_every=config.refresh_every)]


def build_model(config: TrainConfig, images: ImageSet, defenses: list[Defense]) -> SplitModel:
    """The split model for these images, with its initial weights, which depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "weights"))
        edge, cloud = models.build(
            config.network,
            cut=config.cut,
            num_classes=images.num_classes,
            image_shape=images.image_shape,
            bottleneck=config.bottleneck,
            **({} if config.width is None else {"width": config.width}),
        )
    transforms = [module for defense in defenses if (module := defense.transform()) is not None]
    channel = Channel(
        noise_std=config.noise_std,
        clip_norm=config.clip_norm,
        quantize_bits=config.quantize_bits,
        transforms=transforms,
    )
    return SplitModel(edge, channel, cloud)
