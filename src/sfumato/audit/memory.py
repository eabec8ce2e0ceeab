"""How much memory a piece needs, estimated before it runs: a piece that does not fit is declined with a sentence."""

import math
from pathlib import Path
from typing import Any

import torch

from sfumato.audit.context import Context
from sfumato.audit.suite import Piece
from sfumato.audit.training import config_of
from sfumato.models import ReconstructionNet

__all__ = ["available_memory", "decline", "needed_memory"]

_USABLE = 0.8  # of what is free: others run here too
_COPIES = 6  # of a network's activations: forwards, backwards and workspaces of convolutions
_MAPS = {"posterior": 24}  # a U-Net keeps more of them
_LARGEST_MAP, _MOST_ROWS = 1 << 27, 1 << 26  # values in what the linear attack works on, see `attacks.linear`
_MEMORY_FILES = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def decline(piece: Piece, context: Context) -> str | None:
    """Why a piece cannot run on these images, or on this machine now, or None."""
    values = math.prod(context.sets.test.image_shape)
    if values > piece.options.get("values", values):
        return f"an image has {values:,} values, and beyond {piece.options['values']:,} it takes too long; give --size"
    needed, free = needed_memory(piece, context), available_memory(context.device)
    if needed <= _USABLE * free:
        return None
    return (
        f"it needs about {needed / 1e9:.2g} GB of memory and {free / 1e9:.2g} GB are free; audit on a larger machine, "
        "or smaller images (--size)"
    )


def needed_memory(piece: Piece, context: Context) -> float:
    """Bytes at the peak, beyond what is there already; within a factor of about 2."""
    config = config_of(piece, context, {})
    size, pixels = context.test.z[0].numel(), math.prod(context.sets.test.image_shape)
    count = min(len(context.sets.train), piece.options.get("train", math.inf))
    if piece.attack == "nearest":
        return 8.0 * min(config.values, count * size) + count * pixels
    linear = _linear(size, pixels, round(count), getattr(config, "draws", 4), getattr(config, "size", 4096))
    if not hasattr(config, "width"):
        return linear
    return max(linear, _network(context, config, _MAPS.get(piece.attack, _COPIES)))  # most begin with a linear solution


def _linear(size: int, pixels: int, count: int, draws: int, most: int) -> float:
    """Ridge regression in float64: moments of the features, or inner products of the images where those are fewer."""
    long = size > most or size * pixels > _LARGEST_MAP
    rows = min(count, most, max(2, _MOST_ROWS // max(size, pixels))) if long else count * draws
    if size <= rows:
        return 8.0 * (5 * size**2 + 3 * size * pixels)
    return 8.0 * (5 * rows**2 + 4 * rows * (size + pixels))


def _network(context: Context, config: Any, copies: int) -> float:
    """Weights, gradients and Adam's two moments, and activations of a batch."""
    feature, image = tuple(context.test.z.shape[1:]), context.sets.test.image_shape
    with torch.device("meta"):
        network = ReconstructionNet(feature, image, width=config.width, blocks=config.blocks)
    weights = sum(value.numel() for value in network.parameters())
    values = config.batch_size * config.width * image[1] * image[2]
    return 20.0 * weights + 4.0 * copies * values


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
