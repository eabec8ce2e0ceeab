"""Attackers who know less than the paper's worst case, or something wrong: the same attack, learned from less."""

import time
from collections.abc import Iterator
from typing import Any

from sfumato import attacks
from sfumato.attacks import Observer
from sfumato.audit.images import shuffled
from sfumato.audit.inversion import Stop, Tell, outcome_of
from sfumato.audit.measure import redraw, summary
from sfumato.audit.stage import Stage
from sfumato.audit.suite import Piece
from sfumato.audit.training import config_of
from sfumato.errors import Interrupted
from sfumato.split import Channel, SplitModel

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
        figures = summary(redraw(fitted, test, stage.device))
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
    total = len(stage.sets.train)
    for count in dict.fromkeys(max(4, round(share * total)) for share in piece.options.get("shares", ())):
        yield f"{count:,} pairs", stage.observer(shuffled(stage.sets.train, count, stage.seed, "attacker"))
    for factor in piece.options.get("noises", ()):
        # The attacker trains on features that it makes itself, with the noise that it believes in.
        model, channel = stage.subject.model, stage.subject.model.channel
        believed = Channel(
            noise_std=factor * channel.noise_std,
            clip_norm=channel.clip_norm,
            quantize_bits=channel.quantize_bits,
            low=channel.low,
            high=channel.high,
            transforms=channel.transforms,
        )
        label = "no noise believed" if factor == 0 else f"noise believed {factor:g} times as strong"
        belief = SplitModel(model.edge, believed, model.cloud)
        yield label, Observer(belief, stage.sets.train, device=stage.device)
