"""The information bound of a finished model, whatever it was trained with."""

import torch
from torch import Tensor

from sfumato.cem import CEM
from sfumato.data import ImageSet
from sfumato.split import SplitModel
from sfumato.training.evaluate import collect_features

__all__ = ["measure_information"]

_MOST = 10_000


def measure_information(
    model: SplitModel, images: ImageSet, *, clusters_per_class: int, seed: int, bf16: bool = False
) -> dict[str, float]:
    """The bound of Theorem 2 on I(z; z_hat) in nats, on the features of (at most 10,000 of) these images.

    Both forms bound from above if the moments were exact. Sample moments underestimate: the full form badly where a
    cluster has fewer samples than a few times the dimension, the diagonal one little from 20 samples on, which is why
    figures that compare models use the diagonal form.

    Returns:
        `{"full": .., "diagonal": .., "samples_per_cluster": .., "dimension": ..}`; empty without noise, where the
        information is infinite.
    """
    noise_std = model.channel.noise_std
    if noise_std == 0:
        return {}
    device = next(model.parameters()).device
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:_MOST]
    features: Tensor = collect_features(model, images.images[order].to(device), bf16=bf16)
    labels = images.labels[order].to(device)
    found: dict[str, float] = {}
    for covariance in ("full", "diagonal"):
        cem = CEM(
            num_classes=images.num_classes,
            noise_std=noise_std,
            clusters_per_class=clusters_per_class,
            covariance=covariance,
            seed=seed,
            distributed=False,
        ).to(device)
        cem.refresh(features, labels)
        found[covariance] = cem.information
    found["samples_per_cluster"] = len(features) / (images.num_classes * clusters_per_class)
    found["dimension"] = features.shape[1]
    return found
