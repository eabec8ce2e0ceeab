"""What a model's released features give away: which image was sent, how many nats, and what certificates follow."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from sfumato.bounds import clipped_success_at_most, success_at_most
from sfumato.data import ImageSet
from sfumato.information import held_out_information
from sfumato.modes import evaluating
from sfumato.seeds import generator
from sfumato.split import SplitModel

__all__ = ["Leakage", "measure_leakage"]

_BATCH = 512


@dataclass(frozen=True)
class Leakage:
    """Identification, held-out information in nats, and certificates.

    Attributes:
        identified: share of the images that maximum likelihood names right among all of them.
        candidates: how many there are.
        identified_error: standard error of that share.
        information: unbiased upper bound on I(z; z_hat); None without noise, where it is infinite.
        information_error: its standard error.
        identified_at_most: of any attacker, from the information; None without noise.
        clipped_at_most: of any attacker and for any images, from the clip; None without a clip or noise.
    """

    identified: float
    candidates: int
    identified_error: float
    information: float | None
    information_error: float | None
    identified_at_most: float | None
    clipped_at_most: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def measure_leakage(model: SplitModel, images: ImageSet, *, seed: int = 0) -> Leakage:
    """Measure on images that the encoder did not learn from.

    The noise is Gaussian with one variance, so the most likely image is the one whose clean feature is nearest.

    Args:
        model: on the device where it is to be measured.
        images: the candidates, each of which is sent once.
        seed: of the noise and of the folds.
    """
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    noise = generator(seed, "identify", device=device)
    parts = torch.arange(len(images)).split(_BATCH)
    with evaluating(model):
        clean = torch.cat([model.features(images.float(part).to(device)).flatten(1).float() for part in parts])
        sent = (model.encode(images.float(part).to(device), noise).flatten(1).float() for part in parts)
        named = torch.cat([torch.cdist(z, clean).argmin(1) for z in sent]).cpu()
    hits = (named == torch.arange(len(images))).double()
    share, count = float(hits.mean()), len(images)
    error = (share * (1 - share) / count) ** 0.5
    std, radius = model.channel.noise_std, model.channel.clip_norm
    if std == 0:
        return Leakage(share, count, error, None, None, None, None)
    found = held_out_information(clean, images.labels if images.num_classes > 1 else None, noise_std=std, seed=seed)
    return Leakage(
        share,
        count,
        error,
        found.value,
        found.standard_error,
        float(success_at_most(1 / count, found.at_most)),
        None if radius is None else float(clipped_success_at_most(1 / count, radius, std)),
    )
