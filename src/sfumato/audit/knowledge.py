"""Attackers who know less than the paper's worst case, or something wrong: the same attack, learned from less."""

import time
from collections.abc import Iterator
from typing import Any

from sfumato import attacks
from sfumato.attacks import Observer, invert_released
from sfumato.attacks.knowledge import Knowledge, observe
from sfumato.audit.images import shuffled
from sfumato.audit.inversion import Stop, Tell, outcome_of
from sfumato.audit.measure import summary
from sfumato.audit.stage import Stage
from sfumato.audit.suite import Piece
from sfumato.audit.training import config_of
from sfumato.errors import Interrupted

__all__ = ["run_knowledge"]


def run_knowledge(piece: Piece, stage: Stage, decided: dict[str, Any], tell: Tell, should_stop: Stop | None) -> None:
    """Fit the attack for every kind of attacker and redraw the test images from what really left the device."""
    began = time.monotonic()
    test = stage.test.first(piece.images or len(stage.test))
    points = []
    fitted = None
    for index, (label, observer) in enumerate(_attackers(piece, stage)):
        if should_stop is not None and should_stop():
            raise Interrupted("the audit was stopped; the same command goes on from there")
        fitted = attacks.build(config_of(piece, stage, decided))
        fitted.fit(observer, state=stage.folder.state(f"{piece.name}.state{index}"), should_stop=should_stop)
        figures = summary(invert_released(fitted, test.images, test.z, device=stage.device))
        points.append({"label": label, "known": len(observer)} | figures)
        tell(f"{piece.name}: {label}, error {figures['mse']['mean']:.5f}")
    figures_of_piece = {
        "name": piece.name,
        "attack": piece.attack,
        "label": f"{piece.options['words']} ({piece.attack})",
        "points": points,
        "note": piece.options.get("note", ""),
        "seconds": round(time.monotonic() - began, 2),
    }
    stage.folder.finish(piece.name, figures_of_piece | ({} if fitted is None else outcome_of(fitted)))


def _attackers(piece: Piece, stage: Stage) -> Iterator[tuple[str, Observer]]:
    """What each attacker is called, and what it may see."""
    train, model = stage.sets.train, stage.subject.model
    if piece.options.get("other"):
        yield "the training set", observe(model, train, device=stage.device)
        yield (
            "as many other images",
            observe(model, train, Knowledge(other_data=True), other=stage.other, device=stage.device),
        )
    for count in dict.fromkeys(max(4, round(share * len(train))) for share in piece.options.get("shares", ())):
        knowledge = Knowledge(fraction=count / len(train), seed=stage.seed)
        yield f"{count:,} images", observe(model, train, knowledge, device=stage.device)
    for count in dict.fromkeys(min(count, len(train)) for count in piece.options.get("pairs", ())):
        knowledge = Knowledge(pairs=count, seed=stage.seed)
        yield f"{count:,} recorded pairs", observe(model, train, knowledge, device=stage.device)
    known = shuffled(train, piece.options.get("train", len(train)), stage.seed, "attacker")
    for factor in piece.options.get("noises", ()):
        # The attacker trains on features that it makes itself, with the noise that it believes in.
        knowledge = Knowledge(noise_std=factor * model.channel.noise_std)
        words = {0: "believes in no noise", 1: "knows the noise"}
        label = words.get(factor, f"believes in {factor:g} times the noise")
        yield label, observe(model, known, knowledge, device=stage.device)
    if unknown := piece.options.get("unknown"):
        low, high = (factor * model.channel.noise_std for factor in unknown)
        knowledge = Knowledge(noise_std=low, noise_up_to=high)
        label = f"takes it for anything from {unknown[0]:g} to {unknown[1]:g} times"
        yield label, observe(model, known, knowledge, device=stage.device)
