"""The suite as data, and which of its pieces a subject, its minutes and this machine allow.

The pieces run in the order of the suite, and each gets its share of the time that is left. What is left out is left out
for one of five reasons, each said in a sentence: the subject does not allow it, the audit has fewer minutes than it
takes to be worth it, it does not fit into memory, too little of it fits into its share at the pace measured when it
begins (`attacks.base.TooSlow`), or it went on for far longer than that (`context.TooLate`).
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from sfumato import attacks
from sfumato.attacks import ATTACKS
from sfumato.attacks.linear import linear_bytes
from sfumato.audit.context import Context, available_memory
from sfumato.audit.images import shuffled
from sfumato.audit.schema import Untested
from sfumato.errors import ConfigError
from sfumato.models import ReconstructionNet

_USABLE = 0.8  # of what is free: others run here too
_COPIES = 8  # of a block's activations: normalised, rectified and convolved twice, and what flows back
_MAPS = {"posterior": 12}  # a U-Net keeps more of them
_PROBED = 16.0  # bytes of each value that a probe reads: releases, standardised, and what the search keeps
_SMALL_SET, _SMALL_BATCH = 10_000, 64
_MOST_ACTIVATIONS = 1 << 26  # values of a batch in one layer of every block, so that a step stays below 2 GB
_TRIAL_ITERATIONS, _TRIAL_IMAGES, _TRIAL_BATCH = 4, 512, 8


@dataclass(frozen=True)
class Piece:
    """One piece of an audit; `suite.yaml` says what the fields mean."""

    name: str
    kind: Literal["attack", "queries", "knowledge", "probe"]
    attack: str
    share: float
    minutes: float = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: tuple[int, int] | None = None
    steps: int | None = None
    images: int | None = None
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("epochs", "needs"):  # lists in a file
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))


@cache
def load_suite() -> tuple[Piece, ...]:
    """The pieces of `suite.yaml`."""
    import yaml

    lines = yaml.safe_load((Path(__file__).parent / "suite.yaml").read_text(encoding="utf-8"))
    return tuple(Piece(**line) for line in lines)


def chosen(
    pieces: Sequence[Piece], only: Sequence[str] = (), skip: Sequence[str] = ()
) -> tuple[list[Piece], list[Untested]]:
    """The pieces that were asked for: those of `only`, all if it is empty, without those of `skip`.

    Raises:
        ConfigError: a name is none of the suite's, or no piece is left.

    >>> kept, dropped = chosen(load_suite(), only=["ridge", "nearest"])
    >>> [piece.name for piece in kept], len(dropped) > 10
    (['ridge', 'nearest'], True)
    """
    names = [piece.name for piece in pieces]
    if unknown := sorted({*only, *skip} - set(names)):
        raise ConfigError(f"there is no piece {unknown[0]!r}; the pieces of an audit are {', '.join(names)}")
    kept = [piece for piece in pieces if (not only or piece.name in only) and piece.name not in skip]
    if not kept:
        raise ConfigError("--only and --skip leave nothing of the audit; name fewer pieces in --skip")
    return kept, [
        Untested(name, f"left out by --{'skip' if name in skip else 'only'}", left_out=True)
        for name in names
        if name not in {piece.name for piece in kept}
    ]


def possible(suite: Sequence[Piece], context: Context, minutes: float) -> tuple[list[Piece], list[Untested]]:
    """The pieces that this subject, these minutes and this machine allow, and why not the others.

    What is done already stays. Nothing is remembered from call to call: what was left out in a busy moment, or for want
    of minutes, is not left out for good.
    """
    lacking = {
        "cloud": "" if context.subject.has_cloud
        else "the target has no decoder, so nothing is known of what a cloud computes",
        "noise": "" if context.subject.model.channel.noise_std > 0
        else "nothing random is added on the wire, so another query gives the same feature",
        "other": "" if context.other is not None else "no images of another origin were given; give --other",
        "labels": "" if context.sets.labelled and context.subject.classifies
        else "nothing names the decoder's classes",
    }  # fmt: skip
    kept: list[Piece] = []
    dropped: list[Untested] = []
    for piece in suite:
        if reasons := [reason for need in piece.needs if (reason := lacking[need])]:
            dropped.append(Untested(piece.name, reasons[0]))
        elif context.folder.finished(piece.name) is None and (why := _decline(piece, context, minutes)):
            dropped.append(Untested(piece.name, why, left_out=True))
        else:
            kept.append(piece)
    return kept, dropped


def _decline(piece: Piece, context: Context, minutes: float) -> str | None:
    """Why a piece cannot run on these images, in this time, or on this machine now; or None."""
    values = math.prod(context.sets.test.image_shape)
    if values > piece.options.get("values", values):
        return f"an image has {values:,} values, and beyond {piece.options['values']:,} it takes too long; give --size"
    if minutes < piece.minutes:
        return f"too little time: give --minutes {piece.minutes:g} or more"
    needed, free = _needed(piece, context), available_memory(context.device)
    if needed <= _USABLE * free:
        return None
    return (
        f"it needs about {needed / 1e9:.2g} GB of memory and {free / 1e9:.2g} GB are free; audit on a larger machine, "
        "or smaller images (--size)"
    )


def _needed(piece: Piece, context: Context) -> float:
    """Bytes at the peak, beyond what is there already; within a factor of about 2."""
    config = config_of(piece, context)
    feature, image = tuple(context.test.z.shape[1:]), context.sets.test.image_shape
    size, pixels = math.prod(feature), math.prod(image)
    count = min(len(context.sets.train), piece.options.get("train", len(context.sets.train)))
    if piece.attack == "nearest":
        return 8.0 * min(config.values, count * size) + count * pixels
    linear = linear_bytes(size, pixels, count, getattr(config, "draws", 4), getattr(config, "size", 4096))
    if piece.kind == "probe":
        return max(linear, _PROBED * 2 * count * size)
    if not hasattr(config, "width"):
        return linear
    with torch.device("meta"):
        network = ReconstructionNet(feature, image, width=config.width, blocks=config.blocks)
    weights = sum(value.numel() for value in network.parameters())
    values = config.batch_size * config.width * image[1] * image[2] * (config.blocks + 1)
    # Weights, gradients and Adam's two moments, and a batch's activations; most begin with a linear solution.
    return max(linear, 20.0 * weights + 4.0 * _MAPS.get(piece.attack, _COPIES) * values)


def config_of(piece: Piece, context: Context) -> Any:
    """The suite's settings, the most epochs, the seed, and smaller batches for small sets and for large images."""
    known = {field.name for field in fields(ATTACKS[piece.attack].config)}
    config = attacks.config_from_dict(piece.attack, {**piece.settings, "seed": context.seed})
    total = len(context.sets.train)
    if "batch_size" in known and "batch_size" not in piece.settings:
        _, height, width = context.sets.train.image_shape
        fits = max(2, _MOST_ACTIVATIONS // ((config.blocks + 1) * config.width * height * width))
        small = min(fits, _SMALL_BATCH) if total < _SMALL_SET else fits
        config = replace(config, batch_size=min(small, config.batch_size))
    if piece.epochs is not None:
        most = piece.epochs[1]
        if piece.steps is not None:  # small sets need more passes
            most = max(most, round(piece.steps / -(-round(total * (1 - config.hold_out)) // config.batch_size)))
        config = replace(config, epochs=most)
    return config


def affordable(piece: Piece, context: Context, seconds: float) -> int:
    """How many training images, and as many test images, a search image by image has time for.

    Measured with a few iterations on a few images, and scaled up: the search is proportional to the iterations.
    """
    full = config_of(piece, context)
    attack = attacks.build(replace(full, iterations=_TRIAL_ITERATIONS))
    began = time.monotonic()
    attack.fit(context.observer(shuffled(context.sets.train, _TRIAL_IMAGES, context.seed, "trial")))
    fitted = time.monotonic()
    z = context.test.z[:_TRIAL_BATCH].to(context.device)
    attack.reconstruct(z)
    more = full.iterations / _TRIAL_ITERATIONS
    per_image = max(1e-9, (time.monotonic() - fitted) / len(z) * more)
    shown = int((seconds - (fitted - began) * more) / (2 * per_image))
    return max(0, min(shown, piece.images or shown, len(context.test), len(context.train)))
