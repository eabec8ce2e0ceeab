"""How many images an attack that searches for each one anew can afford in its time."""

import time
from dataclasses import fields, replace
from typing import Any

from sfumato import attacks
from sfumato.attacks import ATTACKS
from sfumato.audit.context import Context
from sfumato.audit.images import shuffled
from sfumato.audit.suite import Piece
from sfumato.audit.training import config_of

__all__ = ["FEWEST", "decide_search", "searches"]

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

    Measured with a few iterations on a few images, and scaled up: the search itself is proportional to the iterations,
    and a generator's training to images and epochs.
    """
    full = config_of(piece, context, {})
    short: dict[str, Any] = {"iterations": _TRIAL_ITERATIONS}
    epochs = getattr(full, "epochs", 0)
    if epochs:
        short["epochs"] = 1
    images = shuffled(context.sets.train, _TRIAL_IMAGES, context.seed, "trial")
    attack = attacks.build(replace(full, **short))
    began = time.monotonic()
    attack.fit(context.observer(images))
    fitting = time.monotonic() - began
    z = context.test.z[:_BATCH].to(context.device)
    began = time.monotonic()
    attack.reconstruct(z)
    more = full.iterations / _TRIAL_ITERATIONS
    per_image = (time.monotonic() - began) / len(z) * more
    # A trained generator costs its epochs over all images; the rest of a fit is a search over held-out images.
    whole = fitting * (epochs * len(context.sets.train) / len(images) if epochs else more)
    affordable = int((seconds - whole) / (2 * per_image))
    return {"shown": max(0, min(affordable, piece.images or affordable, len(context.test), len(context.train)))}
