"""Which pieces an audit consists of, and how deep each goes, by its time and by the memory that is free.

The pieces run in the order of the suite, and each gets its share of the time that is left. What is left out is left out
for one of four reasons, each said in a sentence: the subject does not allow it, the audit has fewer minutes than it
takes to be worth it, it does not fit into memory, or, at the pace measured when it begins, too little of it fits into
its share (`attacks.base.TooSlow`).
"""

import math
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from sfumato import attacks
from sfumato.attacks import ATTACKS
from sfumato.attacks.linear import linear_bytes
from sfumato.audit.context import Context
from sfumato.audit.images import shuffled
from sfumato.audit.schema import Untested
from sfumato.audit.suite import Piece
from sfumato.models import ReconstructionNet

__all__ = ["TimeBudget", "available_memory", "choose", "config_of", "possible"]

_PATIENCE = 2.0  # times its share that a piece in closed form may take before it is left out
_USABLE = 0.8  # of what is free: others run here too
_COPIES = 8  # of a block's activations: normalised, rectified and convolved twice, and what flows back
_MAPS = {"posterior": 12}  # a U-Net keeps more of them
_MEMORY_FILES = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
_SMALL_SET, _SMALL_BATCH = 10_000, 64
_MOST_ACTIVATIONS = 1 << 26  # values of a batch in one layer of every block, so that a step stays below 2 GB
_FEWEST = 8  # images: a search that has time for fewer is left out
_TRIAL_ITERATIONS, _TRIAL_IMAGES, _TRIAL_BATCH = 4, 512, 8


class TimeBudget:
    """Keeps a budget.

    >>> TimeBudget(100.0, spent=95.0, reserve=10.0).left
    0.0
    """

    def __init__(self, seconds: float, spent: float, reserve: float) -> None:
        self._end = seconds - reserve
        self._before = spent
        self._began = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds, over all calls."""
        return self._before + time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Seconds until the pieces have to be done."""
        return max(0.0, self._end - self.spent)

    def allowance(self, share: float, shares: Sequence[float]) -> float:
        """What a piece may take of what is left, `shares` being those of all pieces not done yet, its own included."""
        return self.left * share / sum(shares)


def possible(suite: Sequence[Piece], context: Context, minutes: float) -> tuple[list[Piece], list[Untested]]:
    """The pieces that this subject, these minutes and this machine allow, and why not the others.

    What is done already stays. Nothing is remembered from call to call: what was left out in a busy moment, or for want
    of minutes, is not left out for good.
    """
    has = _has(context)
    kept: list[Piece] = []
    dropped: list[Untested] = []
    for piece in suite:
        lacking = [reason for need in piece.needs if (reason := has[need]) is not None]
        why = None if context.folder.finished(piece.name) is not None else _decline(piece, context, minutes)
        if lacking:
            dropped.append(Untested(piece.name, lacking[0]))
        elif why is not None:
            dropped.append(Untested(piece.name, why, left_out=True))
        else:
            kept.append(piece)
    return kept, dropped


def _has(context: Context) -> dict[str, str | None]:
    noise = context.subject.model.channel.noise_std > 0
    cloud = context.subject.has_cloud
    return {
        "cloud": None if cloud else "the target has no decoder, so nothing is known of what a cloud computes",
        "noise": None if noise else "nothing random is added on the wire, so another query gives the same feature",
        "other": None if context.other is not None else "no images of another origin were given; give --other",
        "labels": None
        if context.sets.labelled and context.subject.classifies
        else "nothing names the decoder's classes",
    }


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
    if not hasattr(config, "width"):
        return linear
    with torch.device("meta"):
        network = ReconstructionNet(feature, image, width=config.width, blocks=config.blocks)
    weights = sum(value.numel() for value in network.parameters())
    values = config.batch_size * config.width * image[1] * image[2] * (config.blocks + 1)
    # Weights, gradients and Adam's two moments, and a batch's activations; most begin with a linear solution.
    return max(linear, 20.0 * weights + 4.0 * _MAPS.get(piece.attack, _COPIES) * values)


def available_memory(device: torch.device) -> float:
    """Bytes that are free: of the GPU, or of this machine within the limit of its container."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    found = []
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        found.append(1024.0 * int(lines["MemAvailable"].split()[0]))
    except (OSError, KeyError, ValueError):
        pass  # no Linux: nothing is known, and nothing declined
    for limit, used in _MEMORY_FILES:
        try:
            most, now = (int((Path("/sys/fs/cgroup") / name).read_text(encoding="ascii")) for name in (limit, used))
            found.append(float(most - now))
        except (OSError, ValueError):
            continue  # no such control group, or "max"
    return min(found, default=math.inf)


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


def choose(piece: Piece, context: Context, seconds: float, durations: dict[str, float]) -> dict[str, Any]:
    """What is decided before a piece begins: `skip`, why it is left out; of a search `shown`, how many images fit.

    Args:
        piece: of the suite.
        context: of the audit.
        seconds: its share of the time.
        durations: seconds that attacks in closed form took on all of the attacker's images.
    """
    if piece.minutes > 0 and seconds <= 0:
        return {"skip": "too little time: give more --minutes"}
    if piece.attack == "optimization":
        shown = _affordable(piece, context, seconds) if seconds > 0 else 0
        if shown < _FEWEST:
            return {"skip": "too little time for a search image by image: give more --minutes"}
        return {"shown": shown}
    total = len(context.sets.train)
    expected = durations.get(piece.attack, 0.0) * min(1.0, piece.options.get("train", total) / total)
    if piece.minutes > 0 and expected > _PATIENCE * seconds:
        return {"skip": f"too little time: give more than {seconds:.0f} s, its share of --minutes"}
    return {}


def _affordable(piece: Piece, context: Context, seconds: float) -> int:
    """How many training images, and as many test images, a search has time for.

    Measured with a few iterations on a few images, and scaled up: the search is proportional to the iterations.
    """
    full = config_of(piece, context)
    images = shuffled(context.sets.train, _TRIAL_IMAGES, context.seed, "trial")
    attack = attacks.build(replace(full, iterations=_TRIAL_ITERATIONS))
    began = time.monotonic()
    attack.fit(context.observer(images))
    fitted = time.monotonic()
    z = context.test.z[:_TRIAL_BATCH].to(context.device)
    attack.reconstruct(z)
    more = full.iterations / _TRIAL_ITERATIONS
    per_image = max(1e-9, (time.monotonic() - fitted) / len(z) * more)
    shown = int((seconds - (fitted - began) * more) / (2 * per_image))
    return max(0, min(shown, piece.images or shown, len(context.test), len(context.train)))
