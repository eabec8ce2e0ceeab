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
from sfumato.audit.context import Context, Stop, TooLate, limited
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


def run_attack(piece: Piece, context: Context, decided: dict[str, Any], tell: Tell, stop: Stop) -> None:
    """Fit, reconstruct training and test images, store figures and pixels."""
    began = time.monotonic()
    images = shuffled(context.sets.train, decided["images"], context.seed, "attacker") if "images" in decided else None
    observer = context.observer(images)

    def progress(done: int, total: int, figures: dict[str, float]) -> None:
        if total > 1:
            tell(f"{piece.name}: epoch {done}/{total}, error on held-out images {figures['held_out_mse']:.5f}")

    def fitted(observer: Observer, until: float, stop: Stop = stop) -> Attack:
        attack = attacks.build(config_of(piece, context))
        attack.deadline, attack.fewest = until, 1 if "images" in decided else _fewest(piece)
        return attack.fit(observer, state=context.folder.state(piece.name), progress=progress, should_stop=stop)

    until = began + _LEARNING * (decided["deadline"] - began)
    if views := piece.options.get("cloud"):
        attack = _inside_the_cloud(fitted, context, views, until, stop)
    else:
        attack = fitted(observer, until)
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
        "images": len(observer),
        "settings": asdict(attack.config) | ({"epochs": attack.planned} if hasattr(attack, "planned") else {}),
        **_outcome_of(attack),
        "trivial_mse": None if attack.outcome is None else attack.outcome.trivial_mse,
        "history": [
            {name: line[name] for name in ("epoch", "mse", "held_out_mse") if name in line} for line in attack.history
        ],
        "seconds": round(time.monotonic() - began, 2),
    }
    context.folder.finish(piece.name, described | parts, tensors)


def _fewest(piece: Piece) -> int:
    return 1 if piece.epochs is None else piece.epochs[0]


def _inside_the_cloud(fitted: Callable[..., Attack], context: Context, most: int, until: float, stop: Stop) -> Attack:
    """The best, by the attacker's own validation images, of attacks on what the cloud computes from what it receives.

    The activations from which a linear attack reads most are attacked each and together, as long as there is time.
    """
    observer = context.observer()
    names = [one.name for one in rank_activations(observer)[:most]]
    if not names:
        raise FeatureError("the cloud computes nothing that has a row for each image, so nothing of it can be attacked")
    views = [(name,) for name in names] + ([tuple(names)] if len(names) > 1 else [])
    found: list[tuple[float, Attack]] = []
    for index, view in enumerate(views):
        try:
            now = time.monotonic()
            # Only the first may take what is left for reconstructing: without it there is nothing.
            with limited(context.subject.model, until if found else math.inf, stop) as ask:
                ask()
                attack = fitted(observer.inside(*view), now + (until - now) / (len(views) - index), ask)
        except TooLate:
            if not found:
                raise
            late = " or ".join(" and ".join(one) for one in views[index:])
            for _, attack in found:
                attack.outcome = _more(attack, f"; its time was over before it read {late}")
            break
        attack.outcome = _more(attack, f"; reads {' and '.join(view)}")
        found.append((attack.outcome.held_out_mse, attack))
    return min(found, key=lambda one: one[0])[1]


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
