"""The pieces of an audit: an attack, one attack by other attackers, and what else can be read."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato import attacks
from sfumato.attacks import (
    CLOSED_FORM,
    Attack,
    Fit,
    Observer,
    PosteriorAttack,
    Queries,
    QueryObserver,
    invert_released,
    rank_activations,
)
from sfumato.attacks.knowledge import Knowledge, observe
from sfumato.attacks.probes import ATTRIBUTES, probe_attribute
from sfumato.audit.context import Context, Stop, TooLate
from sfumato.audit.images import shuffled
from sfumato.audit.measure import summary
from sfumato.audit.suite import Piece, config_of
from sfumato.data import ImageSet
from sfumato.errors import FeatureError, Interrupted
from sfumato.seeds import generator
from sfumato.torch_utils import evaluating

Tell = Callable[[str], object]

_LEARNING = 0.8  # of its time; then come the images that it reconstructs
_DRAWN, _SAMPLES = 8, 3  # images of which samples are shown, and how many of each
_FIRST, _LARGEST_STEPS, _STEPS = 512, 64, (4, 2)  # images of a first fit, or of all a 64th; then so many times as many


def run_attack(piece: Piece, context: Context, decided: dict[str, Any], tell: Tell, stop: Stop) -> None:
    """Fit, reconstruct training and test images, store figures and pixels."""
    began = time.monotonic()
    if piece.attack in CLOSED_FORM:
        attack, used = _in_closed_form(piece, context, decided["deadline"])
    else:
        attack, used = _trained(piece, context, decided, tell, stop)
    most = decided.get("shown", piece.images)
    parts: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    # A search may stop at its deadline, and test images count most.
    for name, exposure, share in (("test", context.test, 0.5), ("train", context.train, 1.0)):
        chosen = exposure if most is None else exposure.first(most)
        state, now = context.folder.state(f"{piece.name}.state.{name}"), time.monotonic()
        found = invert_released(
            attack, chosen.images, chosen.z, device=context.device, state=state, should_stop=stop,
            until=now + share * (decided["deadline"] - now),
        )  # fmt: skip
        parts[name] = summary(found)
        tensors |= found.tensors(name)
    if isinstance(attack, PosteriorAttack):
        drawn = attack.samples(context.test.z[:_DRAWN].to(context.device), _SAMPLES)
        tensors["samples"] = drawn.mul(255).round().byte().cpu()
    described = {
        "name": piece.name,
        "attack": piece.attack,
        "images": used,
        "settings": asdict(attack.config) | ({"epochs": attack.planned} if hasattr(attack, "planned") else {}),
        **_outcome_of(attack),
        "trivial_mse": None if attack.outcome is None else attack.outcome.trivial_mse,
        "history": [
            {name: line[name] for name in ("epoch", "mse", "held_out_mse") if name in line} for line in attack.history
        ],
        "seconds": round(time.monotonic() - began, 2),
    }
    context.folder.finish(piece.name, described | parts, tensors)


def _trained(piece: Piece, context: Context, decided: dict[str, Any], tell: Tell, stop: Stop) -> tuple[Attack, int]:
    """An attack that trains until its time is over, and how many images it learned from."""

    def progress(done: int, total: int, figures: dict[str, float]) -> None:
        tell(f"{piece.name}: epoch {done}/{total}, error on held-out images {figures['held_out_mse']:.5f}")

    images = shuffled(context.sets.train, decided["images"], context.seed, "attacker") if "images" in decided else None
    observer, attack, now = context.observer(images), attacks.build(config_of(piece, context)), time.monotonic()
    attack.deadline = now + _LEARNING * (decided["deadline"] - now)
    attack.fewest = 1 if "images" in decided else _fewest(piece)
    attack.fit(observer, state=context.folder.state(piece.name), progress=progress, should_stop=stop)
    return attack, len(observer)


def _fewest(piece: Piece) -> int:
    return 1 if piece.epochs is None else piece.epochs[0]


def _in_closed_form(piece: Piece, context: Context, deadline: float) -> tuple[Attack, int]:
    """Of what left the device, or of each of the cloud's activations from which most is read and of all these together,
    the attack that is best on the attacker's own validation images; and how many images it learned from.
    """
    config, views = config_of(piece, context), [()]
    if most := piece.options.get("cloud"):
        names = [one.name for one in rank_activations(context.observer())[:most]]
        if not names:
            raise FeatureError(
                "the cloud computes nothing that has a row for each image, so nothing of it can be attacked"
            )
        views = [(name,) for name in names] + ([tuple(names)] if len(names) > 1 else [])
    best: tuple[float, Attack, int] | None = None
    for index, view in enumerate(views):
        try:
            now = time.monotonic()
            if best is not None and now > deadline:
                raise TooLate("an activation is left")
            attack, used = _on_ever_more(config, context, view, now + (deadline - now) / (len(views) - index))
        except TooLate:
            if best is None:
                raise
            late = " or ".join(" and ".join(one) for one in views[index:])
            best[1].outcome = _more(best[1], f"; its time was over before it read {late}")
            break
        if view:
            attack.outcome = _more(attack, f"; reads {' and '.join(view)}")
        assert attack.outcome is not None
        if best is None or attack.outcome.held_out_mse < best[0]:
            best = attack.outcome.held_out_mse, attack, used
    assert best is not None
    return best[1:]


def _on_ever_more(config: Any, context: Context, view: tuple[str, ...], until: float) -> tuple[Attack, int]:
    """Fitted to a few images, then to more as long as that would be done in time.

    A solution in closed form cannot be interrupted, and costs anything from the number of images to its cube: of long
    activations, n images make n x n systems of equations. So each fit tells whether the next one may begin. Fewer
    images, and not fewer coordinates of the activation: where those are more than the images, n x n numbers are all
    that any linear attack uses, while a projection to fewer coordinates would also blur the few that give most away.
    """
    total = len(context.sets.train)
    count, step, power, took = min(total, max(_FIRST, -(-total // _LARGEST_STEPS))), 1, 3.0, 0.0
    best: tuple[Attack, int] | None = None
    while True:
        before, began = took, time.monotonic()
        observer = context.observer(
            None if count == total else shuffled(context.sets.train, count, context.seed, "attacker")
        )
        try:
            best = attacks.build(config).fit(observer.inside(*view) if view else observer), count
        except TooLate:
            if best is None:
                raise
            break
        if count == total:
            return best
        took = time.monotonic() - began
        if before:  # a sum of powers rises more steeply as it grows
            power = min(3.0, 1 + max(0.0, math.log(took / before, step)))
        step = next((one for one in _STEPS if time.monotonic() + took * one**power <= until), 0)
        if not step:
            break
        count = min(total, step * count)
    best[0].outcome = _more(best[0], f"; from {best[1]:,} of {total:,} images, for want of time")
    return best


def _more(attack: Attack, words: str) -> Fit:
    assert attack.outcome is not None
    return replace(attack.outcome, reason=attack.outcome.reason + words)


def _outcome_of(attack: Attack) -> dict[str, Any]:
    """Whether the attack came to rest, in JSON."""
    if attack.outcome is None:
        return {"converged": None, "reason": "", "held_out_mse": None}
    outcome = attack.outcome
    return {"converged": outcome.converged, "reason": outcome.reason, "held_out_mse": outcome.held_out_mse}


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


def run_sweep(piece: Piece, context: Context, decided: dict[str, Any], tell: Tell, stop: Stop) -> None:
    """Fit the attack for every kind of attacker and reconstruct the test images from what that one sees."""
    began = time.monotonic()
    test = context.test.first(piece.images or len(context.test))
    points: list[dict[str, Any]] = []
    note, fitted = piece.options.get("note", ""), None
    attackers = list(_attackers(piece, context))
    for index, attacker in enumerate(attackers):
        if stop():
            raise Interrupted("the audit was stopped; the same command resumes it")
        if points and time.monotonic() > decided["deadline"]:
            note = f"{note} The time was over after {len(points)} of these attackers.".strip()
            break
        fitted = attacks.build(config_of(piece, context))
        now = time.monotonic()
        fitted.deadline = now + _LEARNING * (decided["deadline"] - now) / (len(attackers) - index)
        fitted.fewest = 1 if points else _fewest(piece)
        state = context.folder.state(f"{piece.name}.state{index}")
        fitted.fit(attacker.observer, state=state, should_stop=stop)
        released = _released(attacker, context, len(test))
        figures = summary(invert_released(fitted, test.images, released, device=context.device, should_stop=stop))
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
            **_outcome_of(fitted),
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
    if options.get("alone"):
        yield _Attacker("never an image beside what left the device for it", context.observer())
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


_WORDS = {
    "brightness": "brighter than the median image",
    "contrast": "more contrast than the median image",
    "asymmetry": "less symmetric than the median image",
    "colour": "the strongest colour channel",
    "class": "the class, which the cloud is meant to read",
}


def run_probes(piece: Piece, context: Context, decided: dict[str, Any], tell: Tell, stop: Stop) -> None:
    """Every property from the feature, and from what the attack of this piece reconstructs."""
    began = time.monotonic()
    known = shuffled(context.sets.train, piece.options["train"], context.seed, "attacker")
    unseen = context.test.first(piece.images or len(context.test)).images
    observer = context.observer(known)
    reconstructing = attacks.build(config_of(piece, context)).fit(observer)
    left = [name for name in ATTRIBUTES if _applies(name, context)]
    found: list[dict[str, Any]] = []
    while left and not (found and time.monotonic() > decided["deadline"]):
        name = left.pop(0)
        for source, attack in (("feature", None), ("reconstruction", reconstructing)):
            if stop():
                raise Interrupted("the audit was stopped; the same command resumes it")
            found.append(_probe(name, source, attack, observer, unseen, context))
        tell(f"{piece.name}: {name} read from the feature in {found[-2]['accuracy']:.1%} of the images")
    context.folder.finish(piece.name, {"probes": found, "left": left, "seconds": round(time.monotonic() - began, 2)})


def _applies(name: str, context: Context) -> bool:
    if name == "class":
        return context.sets.labelled and context.sets.train.num_classes > 1
    return name != "colour" or context.sets.train.image_shape[0] > 1


def _probe(
    name: str, source: str, attack: Attack | None, observer: Any, unseen: Any, context: Context
) -> dict[str, Any]:
    model = context.subject.model
    probe = asdict(probe_attribute(observer, model, unseen, name, attack=attack, seed=context.seed))
    label = f"{_WORDS[name]}, from the {source}"
    return {"name": f"{name}_{source}", "label": label, "property": probe.pop("what"), **probe}
