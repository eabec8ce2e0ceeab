"""Which pieces an audit consists of, decided once, and how deep each goes, decided when it begins."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sfumato.audit.failures import Failures
from sfumato.audit.inversion import Tell
from sfumato.audit.ledger import Ledger
from sfumato.audit.search import FEWEST, decide_search, searches
from sfumato.audit.stage import Stage
from sfumato.audit.suite import Piece, Untested, affordable, runnable
from sfumato.audit.training import Cost, decide, measure_cost, of_piece

__all__ = ["choose", "fits", "make_plan"]

_TRIALS = 5.0
_PATIENCE = 2.0  # times its share that a piece in closed form may take before it is left out


def make_plan(
    suite: Sequence[Piece], stage: Stage, ledger: Ledger, failures: Failures, tell: Tell
) -> tuple[list[Piece], dict[str, Cost], list[Untested]]:
    """What runs, decided once per audit, and what it costs."""
    known = {piece.name: piece for piece in suite}
    stored = stage.folder.decided("plan")
    if stored is None:
        tell("plan: measure what an epoch of each attack takes here")
        possible, missing = runnable(list(known.values()), has=_has(stage))
        by_attack, hopeless = _measured(possible, stage, ledger, failures)
        missing += hopeless
        gone = {one.what for one in hopeless}
        possible = [piece for piece in possible if piece.name not in gone and piece.name not in failures]
        costs = {piece.name: of_piece(piece, by_attack[piece.attack]) for piece in possible if piece.epochs is not None}
        fewest = {
            piece.name: piece.epochs[0] * costs[piece.name].epoch + costs[piece.name].once
            for piece in possible
            if piece.epochs is not None
        }
        kept, dropped = affordable(possible, ledger.left, fewest)
        plan = {
            "pieces": [piece.name for piece in kept],
            "costs": {name: list(cost) for name, cost in costs.items()},
            "untested": [asdict(one) for one in [*missing, *dropped]],
            "failed": [one for one in failures.as_list() if one["what"] in known],
        }
        stored = stage.folder.decide("plan", json.loads(json.dumps(plan)))
    failures.note_all(stored.get("failed", ()))
    costs = {name: Cost(*cost) for name, cost in stored["costs"].items()}
    return [known[name] for name in stored["pieces"]], costs, [Untested(**one) for one in stored["untested"]]


def _measured(
    pieces: Sequence[Piece], stage: Stage, ledger: Ledger, failures: Failures
) -> tuple[dict[str, Cost], list[Untested]]:
    """What every attack costs that trains in epochs; none is measured whose better ranked ones do not fit already."""
    costs: dict[str, Cost] = {}
    hopeless: list[Untested] = []
    full = False
    for piece in sorted((piece for piece in pieces if piece.epochs is not None), key=lambda piece: piece.rank):
        if full and piece.attack not in costs:
            hopeless.append(Untested(piece.name, "too little time: not even better ranked attacks fit"))
            continue
        if piece.attack not in costs:
            with failures.surviving(piece.name, piece.kind):
                costs[piece.attack] = measure_cost(piece, stage)
        if piece.attack not in costs:
            continue
        assert piece.epochs is not None
        cost = of_piece(piece, costs[piece.attack])
        total = sum(one.share for one in pieces if one.rank <= piece.rank)  # nothing of a higher rank need run
        full = full or piece.epochs[0] * cost.epoch > ledger.left * piece.share / total
    return costs, hopeless


def _has(stage: Stage) -> dict[str, str | None]:
    noise = stage.subject.model.channel.noise_std > 0
    return {
        "gradients": None if stage.gradients else "the target passes no gradients, so white-box attacks cannot run",
        "noise": None if noise else "nothing random is added on the wire, so another query gives the same feature",
        "other": None if stage.other is not None else "no images of another origin were given; give --other",
        "labels": None if stage.sets.labelled else "the images have no labels",
    }


def choose(
    piece: Piece, stage: Stage, seconds: float, costs: Mapping[str, Cost], slower: float, durations: dict[str, float]
) -> dict[str, Any]:
    """How deep a piece goes in its time, or why it is left out."""
    if piece.kind == "attack" and searches(piece):
        trial = f"trial of {piece.name}"
        # Trying out what one image takes is worth it only where several times that is left.
        if seconds > _TRIALS * durations.get(trial, 0.0):
            began = time.monotonic()
            choice = decide_search(piece, stage, seconds)
            durations[trial] = time.monotonic() - began
            if choice["shown"] >= FEWEST:
                return choice
        return {"skip": "too little time for a search image by image"}
    if piece.epochs:
        return decide(piece, stage, seconds, costs[piece.name].times(slower))
    if piece.rank > 0 and durations.get(piece.attack, 0.0) * fits(piece, stage) > _PATIENCE * seconds:
        return {"skip": f"too little time: give more than {seconds:.0f} s, its share of --minutes"}
    return {}


def fits(piece: Piece, stage: Stage) -> float:
    """How many fits over all images a piece in closed form amounts to."""
    total, options = len(stage.sets.train), piece.options
    share = min(1.0, options.get("train", total) / total)
    counted = len(options.get("queries", ())) + len(options.get("noises", ())) + ("unknown" in options) or 1
    return sum(options.get("shares", ())) or sum(options.get("pairs", ())) / total or share * counted
