"""One attack by other attackers: who ask for an image more than once, who know less, or something wrong."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato import attacks
from sfumato.attacks import Observer, Queries, QueryObserver, invert_released
from sfumato.attacks.knowledge import Knowledge, observe
from sfumato.audit.context import Context
from sfumato.audit.images import shuffled
from sfumato.audit.inversion import Stop, Tell, outcome_of
from sfumato.audit.measure import summary
from sfumato.audit.suite import Piece
from sfumato.audit.training import config_of
from sfumato.data import ImageSet
from sfumato.errors import Interrupted
from sfumato.modes import evaluating
from sfumato.seeds import generator

__all__ = ["run_sweep"]

_CHUNK = 64  # images asked for at once

_REPEATS = {
    "exact": "exact repeats",
    "levels": "near-duplicates, pixels a level up or down",
    "shift": "near-duplicates, shifted by a pixel",
    "recode": "near-duplicates, encoded again",
    "devices": "one image from K devices",
}
_BELIEFS = {0: "believes in no noise", 1: "knows the noise"}


class _Attacker(NamedTuple):
    label: str
    observer: Observer
    queries: int | None = None


def run_sweep(piece: Piece, context: Context, decided: dict[str, Any], tell: Tell, should_stop: Stop | None) -> None:
    """Fit the attack for every kind of attacker and reconstruct the test images from what that one sees."""
    began = time.monotonic()
    test = context.test.first(piece.images or len(context.test))
    points: list[dict[str, Any]] = []
    note, fitted = piece.options.get("note", ""), None
    for index, attacker in enumerate(_attackers(piece, context)):
        if should_stop is not None and should_stop():
            raise Interrupted("the audit was stopped; the same command resumes it")
        if points and time.monotonic() > decided["deadline"]:
            note = f"{note} The time was over after {len(points)} of these attackers.".strip()
            break
        fitted = attacks.build(config_of(piece, context, decided))
        fitted.deadline = decided["deadline"]
        state = context.folder.state(f"{piece.name}.state{index}")
        fitted.fit(attacker.observer, state=state, should_stop=should_stop)
        figures = summary(invert_released(fitted, test.images, _released(attacker, context, len(test)),
                                          device=context.device))  # fmt: skip
        asked = {} if attacker.queries is None else {"queries": attacker.queries}
        points.append({"label": attacker.label, "known": len(attacker.observer)} | asked | figures)
        tell(f"{piece.name}: {attacker.label}, error {figures['mse']['mean']:.5f}")
    assert fitted is not None
    words = piece.options.get("words") or f"{_REPEATS[piece.options['duplicates']]}, {piece.options['noise']} noise"
    context.folder.finish(
        piece.name,
        {
            "name": piece.name,
            "attack": piece.attack,
            "label": f"{words} ({piece.attack})",
            "points": points,
            "note": note,
            **outcome_of(fitted),
            "seconds": round(time.monotonic() - began, 2),
        },
    )


def _released(attacker: _Attacker, context: Context, count: int) -> Tensor:
    """What this attacker holds of the first test images."""
    observer = attacker.observer
    if not isinstance(observer, QueryObserver):
        return context.test.z[:count]
    random = generator(context.seed, "audit-repeats", observer.plan.queries, device=context.device)
    images = context.test.images
    with evaluating(context.subject.model):
        parts = [observer.asked(images.float(part), random).cpu() for part in torch.arange(count).split(_CHUNK)]
    return torch.cat(parts)


def _attackers(piece: Piece, context: Context) -> Iterator[_Attacker]:
    """What each attacker is called, and what it may see."""
    train, model, options = context.sets.train, context.subject.model, piece.options

    def knowing(knowledge: Knowledge, images: ImageSet = train, other: ImageSet | None = None) -> Observer:
        return observe(model, images, knowledge, other=other, device=context.device)

    known = shuffled(train, options.get("train", len(train)), context.seed, "attacker")
    for count in options.get("queries", ()):
        queries = Queries(count, options["noise"], options["duplicates"])
        yield _Attacker(f"K = {count}", QueryObserver(context.observer(known), queries), count)
    if options.get("other"):
        yield _Attacker("the training set", observe(model, train, device=context.device))
        yield _Attacker("as many other images", knowing(Knowledge(other_data=True), other=context.other))
    for count in dict.fromkeys(max(4, round(share * len(train))) for share in options.get("shares", ())):
        yield _Attacker(f"{count:,} images", knowing(Knowledge(fraction=count / len(train), seed=context.seed)))
    for count in dict.fromkeys(min(count, len(train)) for count in options.get("pairs", ())):
        yield _Attacker(f"{count:,} recorded pairs", knowing(Knowledge(pairs=count, seed=context.seed)))
    noise = model.channel.noise_std
    for factor in options.get("noises", ()):
        # The attacker trains on features that it makes itself, with the noise that it believes in.
        label = _BELIEFS.get(factor, f"believes in {factor:g} times the noise")
        yield _Attacker(label, knowing(Knowledge(noise_std=factor * noise), known))
    if unknown := options.get("unknown"):
        low, high = unknown
        label = f"takes it for anything from {low:g} to {high:g} times"
        yield _Attacker(label, knowing(Knowledge(noise_std=low * noise, noise_up_to=high * noise), known))
