"""Measuring a split model: accuracy and information through the wire, and its features."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.compute import autocast, memory_format
from sfumato.data import ImageSet
from sfumato.defenses import Defense
from sfumato.errors import DivergedError
from sfumato.integrations import FEWEST, MOST, EpochFigures
from sfumato.mixture import held_out_information
from sfumato.seeds import generator
from sfumato.split import SplitModel
from sfumato.torch_utils import evaluating
from sfumato.training.config import TrainConfig

__all__ = ["accuracy", "check_learning", "collect_features", "epoch_figures", "measure_information", "recognised"]

_CHUNK = 512
_MOST_FOR_INFORMATION = 2000
_FEWEST_STEPS_TO_LEARN = 50
_CPU_CHUNK = 32  # the widest maps of so many images stay in the cache: twice as fast as 512


def recognised(model: SplitModel, images: ImageSet, *, seed: int, draws: int = 1, bf16: bool = False) -> Tensor:
    """In how many of `draws` of the noise the cloud recognises each image from what leaves the device, (N,) int64."""
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    noise = generator(seed, "accuracy", device=device)
    counts = torch.zeros(len(images), dtype=torch.int64)
    for _ in range(draws):
        for indices in torch.arange(len(images)).split(_CHUNK):
            x = images.float(indices).to(device, memory_format=memory_format(device, images.image_shape))
            with evaluating(model), autocast(device, bf16):
                logits = model(x, noise)
            counts[indices] += logits.argmax(1).cpu() == images.labels[indices]
    return counts


def accuracy(model: SplitModel, images: ImageSet, *, seed: int, draws: int = 1, bf16: bool = False) -> float:
    """Share of images that the cloud recognises from what leaves the device, averaged over `draws` of the noise."""
    right = recognised(model, images, seed=seed, draws=draws, bf16=bf16)
    return int(right.sum()) / (draws * len(images))


def check_learning(done: int, epochs: int, steps: int, right: float, labels: Tensor) -> None:
    """A defended training that is at chance after its first third would only use up time: a `DivergedError`.

    `done` of the epochs have ended, each of so many steps; `right` is the accuracy on the training images with these
    labels.
    """
    if 3 * done < epochs or done * steps < _FEWEST_STEPS_TO_LEARN:
        return
    count = len(labels)
    chance = float(torch.bincount(labels).max()) / count
    if right <= chance + 3 * math.sqrt(chance * (1 - chance) / count):
        raise DivergedError(
            f"after {done} of {epochs} epochs the accuracy on the training images is {right:.1%}, which is chance: the "
            "defence wins against the classifier; lower --lam or the defence's strength, or --lr, and start a new run"
        )


def collect_features(model: SplitModel, pixels: Tensor, *, bf16: bool = False) -> Tensor:
    """z_hat of all images (N, C, H, W) uint8 in evaluation mode, (N, D) float32: one pass through the encoder."""
    features: Tensor | None = None
    order = memory_format(pixels.device, tuple(pixels.shape[1:]))
    chunk = _CPU_CHUNK if pixels.device.type == "cpu" else _CHUNK
    with evaluating(model):
        for start in range(0, len(pixels), chunk):
            x = pixels[start : start + chunk].to(memory_format=order).float().div_(255)
            with autocast(pixels.device, bf16):
                part = model.features(x).flatten(1)
            if features is None:
                features = torch.empty(len(pixels), part.shape[1], device=pixels.device)
            features[start : start + len(part)] = part
    if features is None:
        raise ValueError("no images")
    return features


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
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:_MOST_FOR_INFORMATION]
    features = collect_features(model, images.images[order].to(device), bf16=bf16)
    labels = images.labels[order] if images.num_classes > 1 else None
    found = held_out_information(features, labels, model.channel.noise, seed)
    return {
        "held_out": found.value,
        "standard_error": found.standard_error,
        "samples": len(features),
        "dimension": features.shape[1],
    }


def epoch_figures(
    model: SplitModel, defenses: Sequence[Defense], train: ImageSet, held_out: ImageSet | None, config: TrainConfig
) -> EpochFigures | None:
    """What measures the features after every epoch, if there are images held out for it."""
    if not config.watch or held_out is None or min(len(train), len(held_out)) < FEWEST:
        return None
    pairs = [
        (part.float(chosen), part.labels[chosen])
        for part, name in ((train, "train"), (held_out, "held_out"))
        for chosen in [torch.randperm(len(part), generator=generator(config.seed, "watch", name))[:MOST]]
    ]
    mixture = next((cem for defense in defenses if (cem := getattr(defense, "cem", None)) is not None), None)
    return EpochFigures(model, *pairs, cem=mixture, seed=config.seed)
