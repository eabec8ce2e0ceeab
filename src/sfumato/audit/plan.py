"""Which pieces an audit consists of, and how deep each goes, by its time and by the memory that is free."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sfumato.audit.context import Context
from sfumato.audit.folder import Failures
from sfumato.audit.inversion import Tell
from sfumato.audit.schema import Untested
from sfumato.audit.suite import Piece, affordable, runnable, too_little
from sfumato.audit.training import FEWEST, Cost, config_of, decide, decide_search, measure_cost, of_piece, searches
from sfumato.models import ReconstructionNet

__all__ = ["TimeBudget", "available_memory", "choose", "fits", "make_plan"]

_TRIALS = 5.0
_PATIENCE = 2.0  # times its share that a piece in closed form may take before it is left out
_USABLE = 0.8  # of what is free: others run here too
_COPIES = 8  # of a block's activations: normalised, rectified and convolved twice, and what flows back
_MAPS = {"posterior": 12}  # a U-Net keeps more of them
_LARGEST_MAP, _MOST_ROWS = 1 << 27, 1 << 26  # values in what the linear attack works on, see `attacks.linear`
_MEMORY_FILES = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


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


def make_plan(
    suite: Sequence[Piece], context: Context, budget: TimeBudget, failures: Failures, tell: Tell
) -> tuple[list[Piece], dict[str, Cost], list[Untested]]:
    """What runs in this call, what it costs, and what does not run for which reason.

    What is done already stays. Only costs are remembered from call to call, and an audit that is extended measures them
    anew: what was left out in a busy moment is not left out for good.
    """
    possible, missing = runnable(suite, has=_has(context))
    folder = context.folder
    done = [piece for piece in possible if folder.finished(piece.name) is not None]
    open_ = [piece for piece in possible if piece not in done]
    begun = [piece for piece in open_ if folder.decided(piece.name) is not None]
    for piece in [piece for piece in open_ if piece not in begun]:
        if (why := _decline(piece, context)) is not None:
            missing.append(Untested(piece.name, why, left_out=True))
            open_.remove(piece)
    by_attack, hopeless = _measured(open_, context, budget, failures, tell)
    gone = {one.what for one in hopeless}
    open_ = [piece for piece in open_ if piece.name not in gone and piece.name not in failures]
    costs = {piece.name: of_piece(piece, by_attack[piece.attack]) for piece in open_ if piece.epochs is not None}
    fewest = {
        piece.name: piece.epochs[0] * costs[piece.name].epoch + costs[piece.name].once
        for piece in open_
        if piece.epochs is not None
    }
    kept, dropped = affordable([piece for piece in open_ if piece not in begun], budget.left, fewest)
    ordered = [piece for piece in possible if piece in done or piece in begun or piece in kept]
    return ordered, costs, [*missing, *hopeless, *dropped]


def _measured(
    pieces: Sequence[Piece], context: Context, budget: TimeBudget, failures: Failures, tell: Tell
) -> tuple[dict[str, Cost], list[Untested]]:
    """What every attack costs that trains in epochs; none is measured whose better ranked ones do not fit already."""
    known = context.folder.decided("costs") or {}
    costs = {attack: Cost(*cost) for attack, cost in known.items()}
    hopeless: list[Untested] = []
    full = False
    for piece in sorted((piece for piece in pieces if piece.epochs is not None), key=lambda piece: piece.rank):
        full = full or (piece.rank > 0 and budget.left == 0)
        if full and piece.attack not in costs:
            why = "too little time: not even better ranked attacks fit"
            hopeless.append(Untested(piece.name, why, left_out=True))
            continue
        total = sum(one.share for one in pieces if one.rank <= piece.rank)  # nothing of a higher rank need run
        if piece.attack not in costs:
            tell(f"plan: measure what an epoch of {piece.attack} takes here")
            with failures.surviving(piece.name, piece.kind):
                measured = measure_cost(piece, context, budget.left)
                if isinstance(measured, Cost):
                    costs[piece.attack] = measured
                else:
                    full = True
                    hopeless.append(Untested(piece.name, too_little(measured / piece.share * total), left_out=True))
        if piece.attack not in costs:
            continue
        assert piece.epochs is not None
        cost = of_piece(piece, costs[piece.attack])
        full = full or piece.epochs[0] * cost.epoch > budget.left * piece.share / total
    if costs and not known:
        context.folder.decide("costs", {attack: list(cost) for attack, cost in costs.items()})
    return costs, hopeless


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


def choose(
    piece: Piece,
    context: Context,
    seconds: float,
    costs: Mapping[str, Cost],
    slower: float,
    durations: dict[str, float],
) -> dict[str, Any]:
    """How deep a piece goes in its time, or why it is left out."""
    if piece.rank > 0 and seconds <= 0:
        return {"skip": "too little time: give more --minutes"}
    if piece.kind == "attack" and searches(piece):
        trial = f"trial of {piece.name}"
        # Trying out what one image takes is worth it only where several times that is left.
        if seconds > _TRIALS * durations.get(trial, 0.0):
            began = time.monotonic()
            choice = decide_search(piece, context, seconds)
            durations[trial] = time.monotonic() - began
            if choice["shown"] >= FEWEST:
                return choice
        return {"skip": "too little time for a search image by image"}
    if piece.epochs:
        return decide(piece, context, seconds, costs[piece.name].times(slower))
    if piece.rank > 0 and durations.get(piece.attack, 0.0) * fits(piece, context) > _PATIENCE * seconds:
        return {"skip": f"too little time: give more than {seconds:.0f} s, its share of --minutes"}
    return {}


def fits(piece: Piece, context: Context) -> float:
    """How many fits over all images a piece in closed form amounts to."""
    total, options = len(context.sets.train), piece.options
    share = min(1.0, options.get("train", total) / total)
    counted = len(options.get("queries", ())) + len(options.get("noises", ())) + ("unknown" in options) or 1
    return sum(options.get("shares", ())) or sum(options.get("pairs", ())) / total or share * counted


def _decline(piece: Piece, context: Context) -> str | None:
    """Why a piece cannot run on these images, or on this machine now, or None."""
    values = math.prod(context.sets.test.image_shape)
    if values > piece.options.get("values", values):
        return f"an image has {values:,} values, and beyond {piece.options['values']:,} it takes too long; give --size"
    needed, free = _needed(piece, context), available_memory(context.device)
    if needed <= _USABLE * free:
        return None
    return (
        f"it needs about {needed / 1e9:.2g} GB of memory and {free / 1e9:.2g} GB are free; audit on a larger machine, "
        "or smaller images (--size)"
    )


def _needed(piece: Piece, context: Context) -> float:
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
    return 20.0 * weights + 4.0 * copies * (config.blocks + 1) * values


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
