"""The same image sent more than once: an attacker who averages the answers, at several numbers of queries."""

import time
from dataclasses import replace
from typing import Any

import torch

from sfumato import attacks
from sfumato.attacks import Queries, QueryObserver, invert_released
from sfumato.audit.images import shuffled
from sfumato.audit.inversion import Stop, Tell, outcome_of
from sfumato.audit.measure import summary
from sfumato.audit.stage import Stage
from sfumato.audit.suite import Piece
from sfumato.audit.training import config_of
from sfumato.errors import Interrupted
from sfumato.seeds import generator

__all__ = ["run_repeats"]

_CHUNK = 512

_LABELS = {
    "exact": "exact repeats",
    "levels": "near-duplicates, pixels a level up or down",
    "shift": "near-duplicates, shifted by a pixel",
    "recode": "near-duplicates, encoded again",
    "devices": "one image from K devices",
}


def run_repeats(piece: Piece, stage: Stage, decided: dict[str, Any], tell: Tell, should_stop: Stop | None) -> None:
    """Fit the attack anew for every K and redraw the test images from averaged answers."""
    began = time.monotonic()
    plan = Queries(1, piece.options["noise"], piece.options["duplicates"])
    train = shuffled(stage.sets.train, piece.options.get("train", len(stage.sets.train)), stage.seed, "attacker")
    test = stage.test.first(piece.images or len(stage.test))
    points = []
    for count in piece.options["queries"]:
        if should_stop is not None and should_stop():
            raise Interrupted("the audit was stopped; the same command goes on from there")
        queries = replace(plan, queries=count)
        observer = QueryObserver(stage.observer(train), queries)
        attack = attacks.build(config_of(piece, stage, decided))
        state = stage.folder.state(f"{piece.name}.state{count}")
        attack.fit(observer, state=state, should_stop=should_stop)
        random = generator(stage.seed, "audit-repeats", count, device=stage.device)
        z = torch.cat(
            [
                observer.asked(test.images.float(part).to(stage.device), random).cpu()
                for part in torch.arange(len(test)).split(_CHUNK)
            ]
        )
        figures = summary(invert_released(attack, test.images, z, device=stage.device))
        points.append({"queries": count, "label": f"K = {count}", "known": len(train)} | figures)
        tell(f"{piece.name}: {count} queries, error {figures['mse']['mean']:.5f}")
    figures_of_piece = {
        "name": piece.name,
        "attack": piece.attack,
        "noise": plan.noise,
        "duplicates": plan.duplicates,
        "label": f"{_LABELS[plan.duplicates]}, {plan.noise} noise ({piece.attack})",
        "points": points,
        "note": "",
        **outcome_of(attack),
        "seconds": round(time.monotonic() - began, 2),
    }
    stage.folder.finish(piece.name, figures_of_piece)
