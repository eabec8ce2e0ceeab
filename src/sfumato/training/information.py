"""The information that crosses the wire of a finished model, whatever it was trained with."""

import torch

from sfumato.data import ImageSet
from sfumato.mixture import held_out_information
from sfumato.split import SplitModel
from sfumato.training.evaluate import collect_features

__all__ = ["measure_information"]

_MOST = 2000


def measure_information(model: SplitModel, images: ImageSet, *, seed: int, bf16: bool = False) -> dict[str, float]:
    """Upper bound on I(z; z_hat) in nats, on the features of (at most 2,000 of) these images.

    Unbiased, and so a bound, for images that the encoder did not learn from; see `sfumato.held_out_information`.

    Returns:
        `{"held_out": .., "standard_error": .., "samples": .., "dimension": ..}`; empty where a direction has no noise
        and the information is infinite, and for fewer than 4 images.
    """
    if model.channel.noise.singular or len(images) < 4:
        return {}
    device = next(model.parameters()).device
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:_MOST]
    features = collect_features(model, images.images[order].to(device), bf16=bf16)
    labels = images.labels[order] if images.num_classes > 1 else None
    found = held_out_information(features, labels, model.channel.noise, seed)
    return {
        "held_out": found.value,
        "standard_error": found.standard_error,
        "samples": len(features),
        "dimension": features.shape[1],
    }
