"""How deep an attack goes: epochs of a training and images of a search, from what they take here and the time."""

import time
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any, NamedTuple

from sfumato import attacks
from sfumato.attacks import ATTACKS, Attack, invert_released
from sfumato.audit.context import Context
from sfumato.audit.images import shuffled
from sfumato.audit.suite import Piece
from sfumato.data import ImageSet

__all__ = ["FEWEST", "Cost", "config_of", "decide", "decide_search", "measure_cost", "of_piece", "searches"]

_TRIAL_BATCHES = 2
_TRIAL_EPOCHS = 3
_SMALL_SET = 10_000
_SMALL_BATCH = 64
_MOST_ACTIVATIONS = 1 << 26  # values of a batch in one layer of every block, so that a step stays below 2 GB


class Cost(NamedTuple):
    """Seconds of an epoch over all the attacker's images; once, before the first and to reconstruct the samples."""

    epoch: float
    once: float

    def times(self, factor: float) -> "Cost":
        """On a machine that is so many times slower."""
        return Cost(factor * self.epoch, factor * self.once)


def config_of(piece: Piece, context: Context, decided: dict[str, Any]) -> Any:
    """The suite's settings, what was decided, the seed, and smaller batches for small sets and for large images."""
    known = {field.name for field in fields(ATTACKS[piece.attack].config)}
    values = dict(piece.settings)
    values |= {name: value for name, value in decided.items() if name in known}
    if "seed" in known:
        values["seed"] = context.seed
    config = attacks.config_from_dict(piece.attack, values)
    if "batch_size" not in known or "batch_size" in piece.settings:
        return config
    _, height, width = context.sets.train.image_shape
    fits = max(2, _MOST_ACTIVATIONS // ((config.blocks + 1) * config.width * height * width))
    return replace(config, batch_size=min(fits, _SMALL_BATCH if len(context.sets.train) < _SMALL_SET else fits,
                                          config.batch_size))  # fmt: skip


def measure_cost(piece: Piece, context: Context, seconds: float) -> Cost | float:
    """What an attack costs here, from epochs over a few batches and a batch reconstructed. Where even its fewest epochs
    over a single batch take longer than that: how long, and nothing else is measured.

    A fit is thrown away first: it pays for memory and kernels that later ones find ready. What comes before the first
    epoch, such as a linear start, is told from the epochs by their own length.
    """
    assert piece.epochs is not None
    config = config_of(piece, context, {"epochs": _TRIAL_EPOCHS})
    wanted = round(_TRIAL_BATCHES * config.batch_size / (1 - config.hold_out))
    images = shuffled(context.sets.train, wanted, context.seed, "trial")
    warm = images.subset(range(max(2, len(images) // _TRIAL_BATCHES)))
    if (least := piece.epochs[0] * _ends(attacks.build(replace(config, epochs=1)), context, warm)[-1]) > seconds:
        return least
    attack = attacks.build(config)
    ends = _ends(attack, context, images)
    larger = len(context.sets.train) / len(images)
    # The fastest one: a moment in which something else ran must not cost an attack its place in the plan.
    epoch = min(later - earlier for earlier, later in pairwise(ends))
    before = max(0.0, ends[0] - epoch)
    some = context.test.first(config.batch_size if attack.most_images is None else _BATCH)
    began = time.monotonic()
    invert_released(attack, some.images, some.z, device=context.device)
    tried = sum(min(piece.images or len(one), len(one)) for one in (context.train, context.test))
    reconstructing = (time.monotonic() - began) * tried / len(some)
    return Cost(larger * epoch, larger * before + reconstructing)


def of_piece(piece: Piece, cost: Cost) -> Cost:
    """What an attack costs within a piece that trains it several times, on shares of the images."""
    shares = piece.options.get("shares")
    if piece.options.get("other"):
        return Cost(2 * cost.epoch, cost.once)
    return cost if shares is None else Cost(cost.epoch * sum(shares), cost.once * len(shares) / 2)


def decide(piece: Piece, context: Context, seconds: float, cost: Cost) -> dict[str, Any]:
    """Epochs that fit into the time, between the fewest and the most; at rank 0 with fewer images where needed."""
    assert piece.epochs is not None
    fewest, most = piece.epochs
    config = config_of(piece, context, {"epochs": 1})
    total = len(context.sets.train)
    if piece.steps is not None:
        per_epoch = max(1, -(-round(total * (1 - config.hold_out)) // config.batch_size))
        most = max(most, round(piece.steps / per_epoch))
    seconds = max(0.0, seconds - cost.once)
    epochs = int(seconds / cost.epoch)
    if epochs >= fewest:
        return {"epochs": min(epochs, most), "images": total}
    images = max(min(total, 2 * config.batch_size), round(total * seconds / (fewest * cost.epoch)))
    return {"epochs": fewest, "images": min(total, images)}


def _ends(attack: Attack, context: Context, images: ImageSet) -> list[float]:
    """When each epoch of a fit was over, in seconds from its beginning."""
    ends: list[float] = []
    observer = context.observer(images)
    began = time.monotonic()

    def note(done: int, total: int, figures: dict[str, float]) -> None:
        ends.append(time.monotonic() - began)  # the epoch's held-out error is a number by now: nothing is pending

    attack.fit(observer, progress=note)
    return ends


FEWEST = 8
"""With time for fewer images than these, such an attack is left out."""

_TRIAL_ITERATIONS = 4
_TRIAL_IMAGES = 512
_BATCH = 8


def searches(piece: Piece) -> bool:
    """Whether the attack searches for every image anew."""
    return any(field.name == "iterations" for field in fields(ATTACKS[piece.attack].config))


def decide_search(piece: Piece, context: Context, seconds: float) -> dict[str, Any]:
    """`shown`: how many training images, and as many test images, fit; below `FEWEST` the piece is not worth it.

    Measured with a few iterations on a few images, and scaled up: the search is proportional to the iterations.
    """
    full = config_of(piece, context, {})
    images = shuffled(context.sets.train, _TRIAL_IMAGES, context.seed, "trial")
    attack = attacks.build(replace(full, iterations=_TRIAL_ITERATIONS))
    began = time.monotonic()
    attack.fit(context.observer(images))
    fitting = time.monotonic() - began
    z = context.test.z[:_BATCH].to(context.device)
    began = time.monotonic()
    attack.reconstruct(z)
    more = full.iterations / _TRIAL_ITERATIONS
    per_image = (time.monotonic() - began) / len(z) * more
    affordable = int((seconds - fitting * more) / (2 * per_image))
    return {"shown": max(0, min(affordable, piece.images or affordable, len(context.test), len(context.train)))}
