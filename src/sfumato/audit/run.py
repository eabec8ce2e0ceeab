"""One audit from beginning to end: check, plan, attack, bound, judge; resumed by calling again."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.attacks import Leakage, Reconstruction, measure_leakage
from sfumato.audit.assemble import assemble
from sfumato.audit.checks import check_subject, passes_gradients
from sfumato.audit.failures import Failures
from sfumato.audit.floors import measure_bounds
from sfumato.audit.folder import AuditFolder
from sfumato.audit.inversion import Stop, Tell, run_attack
from sfumato.audit.knowledge import run_knowledge
from sfumato.audit.ledger import Ledger
from sfumato.audit.plan import choose, fits, make_plan
from sfumato.audit.reading import run_probes
from sfumato.audit.repeats import run_repeats
from sfumato.audit.stage import MOST_IMAGES, Stage, set_stage
from sfumato.audit.subject import Subject, digest_of_module, placed
from sfumato.audit.suite import Piece, Untested, load_suite
from sfumato.audit.training import Cost
from sfumato.data import DataSets, ImageSet
from sfumato.errors import ConfigError, NotJudgedError
from sfumato.evidence import evidence
from sfumato.files import write_json
from sfumato.modes import evaluating
from sfumato.training.evaluate import accuracy

__all__ = ["Audited", "run_audit"]

_BOUNDS_SHARE = 0.08
_FEWEST_IMAGES = 400
_IMAGES_PER_MINUTE = 100
_RUNNERS: dict[str, Callable[[Piece, Stage, dict[str, Any], Tell, Stop | None], None]] = {
    "attack": run_attack,
    "queries": run_repeats,
    "knowledge": run_knowledge,
    "probe": run_probes,
}


@dataclass(frozen=True)
class Audited:
    """A finished audit.

    Attributes:
        result: as in `audit.json`.
        redrawn: per attack what it made of the test images of the exposure.
        stage: what was attacked, for pictures.
    """

    result: dict[str, Any]
    redrawn: dict[str, Reconstruction]
    stage: Stage

    def pictures(self, count: int = 8) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
        """`typical` (drawn at random) and `worst` (redrawn best by the strongest attack): originals, and per attack."""
        strongest = self.redrawn[self.result["best"]["test"]["mse"]]  # it redrew every image
        worst = strongest.mse.argsort()[:count]
        found = {}
        for name, indices in (("typical", torch.arange(min(count, len(strongest.mse)))), ("worst", worst)):
            shown = {
                attack: one.images[indices] for attack, one in self.redrawn.items() if int(indices.max()) < len(one.mse)
            }
            found[name] = (self.stage.test.images.float(indices), shown)
        return found


def run_audit(
    subject: Subject,
    sets: DataSets,
    out: Path,
    *,
    minutes: float = 10.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    suite: Sequence[Piece] | None = None,
    other: ImageSet | None = None,
    began: float | None = None,
    tell: Tell | None = None,
    progress: Callable[[float, float], None] | None = None,
    should_stop: Stop | None = None,
) -> Audited:
    """Audit a subject in `out`, from where an earlier call was interrupted, and write `audit.json`.

    Args:
        subject: see `load_target`.
        sets: the attacker's images (`train`) and images that it never saw (`test`).
        out: folder of the audit.
        minutes: for the whole audit, kept within a tenth unless a single epoch takes longer than that.
        seed: of everything random.
        device: where to compute.
        suite: the pieces; those of `suite.yaml`, if not said.
        other: images of another origin, for an attacker who has them instead of the training set.
        began: `time.monotonic()` when the budget started to run; now, if not said.
        tell: called with a line about what goes on.
        progress: called with (seconds used, seconds in all).
        should_stop: asked after every step of an attack; True saves and leaves.

    Raises:
        ConfigError: the budget is not positive.
        FeatureError: the encoder cannot be audited; the sentence says why.
        CheckpointError: `out` holds another audit.
        Interrupted: `should_stop` said so; the same call goes on from there.
        NotJudgedError: every attack failed.
    """
    if not minutes > 0:
        raise ConfigError(f"minutes is {minutes}; give a positive number")
    early = 0.0 if began is None else time.monotonic() - began
    subject = placed(subject)
    subject = subject if subject.digest else replace(subject, digest=digest_of_module(subject.model))
    subject.model.to(device)
    tell = tell or (lambda _: None)
    with evaluating(subject.model, gradients=True):
        return _audit(
            subject, sets, out, minutes, seed, torch.device(device), suite, other, early, tell, progress, should_stop
        )


def _audit(
    subject: Subject,
    sets: DataSets,
    out: Path,
    minutes: float,
    seed: int,
    place: torch.device,
    suite: Sequence[Piece] | None,
    other: ImageSet | None,
    early: float,
    tell: Tell,
    progress: Callable[[float, float], None] | None,
    should_stop: Stop | None,
) -> Audited:
    few = sets.test.float(torch.arange(min(4, len(sets.test)))).to(place)
    if len(few) < 4:
        raise ConfigError(f"{len(sets.test)} test images are too few for an audit; give at least 4")
    check_subject(subject, few)
    gradients = passes_gradients(subject, few)
    known = load_suite() if suite is None else tuple(suite)
    identity = {
        "target": subject.digest,
        "train": sets.train.fingerprint(),
        "test": sets.test.fingerprint(),
        "minutes": minutes,
        "seed": seed,
        "other": None if other is None else other.fingerprint(),
        "suite": hashlib.sha256(repr(known).encode()).hexdigest(),
    }
    folder = AuditFolder(out, identity)
    failures = Failures(folder)
    ledger = Ledger(60 * minutes, folder.spent + early, reserve=2.0 + 0.03 * 60 * minutes)
    most = round(min(MOST_IMAGES, max(_FEWEST_IMAGES, _IMAGES_PER_MINUTE * minutes)))
    stage = set_stage(
        subject, sets, gradients=gradients, device=place, seed=seed, folder=folder, most=most, other=other
    )
    if (measured := folder.finished("leakage")) is None:
        tell("identification and information")
        measured = measure_leakage(subject.model, stage.test.images, seed=seed).as_dict()
        folder.finish("leakage", measured)
    if folder.finished("bounds") is None:
        with failures.surviving("bounds", "bounds"):
            floors = measure_bounds(
                subject,
                sets,
                Leakage(**measured),
                gradients=gradients,
                seconds=_BOUNDS_SHARE * ledger.left,
                seed=seed,
                tell=lambda text: tell(f"bounds: {text}"),
            )
            folder.finish("bounds", {"bounds": floors})
    pieces, costs, untested = make_plan(known, stage, ledger, failures, tell)
    _work(pieces, costs, stage, ledger, failures, tell, progress, should_stop)
    left_out = {piece.name: skip for piece in pieces if (skip := (folder.decided(piece.name) or {}).get("skip"))}
    untested = [*untested, *(Untested(name, why) for name, why in left_out.items())]
    pieces = [piece for piece in pieces if folder.finished(piece.name) is not None]
    if not any(piece.kind == "attack" for piece in pieces):
        raise NotJudgedError(
            "no attack could be run: " + "; ".join(f"{one['what']}: {one['why']}" for one in failures.as_list())
        )
    share = None
    if subject.classifies and sets.labelled:
        with failures.surviving("accuracy", "accuracy"):
            share = accuracy(subject.model, sets.test, seed=seed)
    redrawn = {
        piece.name: Reconstruction.from_tensors("test", folder.tensors(piece.name))
        for piece in pieces
        if piece.kind == "attack"
    }
    folder.note_spent(ledger.spent)
    result = assemble(
        stage,
        pieces,
        untested,
        failures.as_list(),
        accuracy=share,
        minutes=minutes,
        seconds=ledger.spent,
        redrawn=redrawn,
        evidence=evidence(place),
    )
    write_json(out / "audit.json", result)
    return Audited(result, redrawn, stage)


def _work(
    pieces: Sequence[Piece],
    costs: dict[str, Cost],
    stage: Stage,
    ledger: Ledger,
    failures: Failures,
    tell: Tell,
    progress: Callable[[float, float], None] | None,
    should_stop: Stop | None,
) -> None:
    """Run what is not finished; each piece gets its share of what is left when it begins.

    What does not fit waits until the others are done: attacks that come to rest early leave time over.
    """
    slower = 1.0  # than measured: other programs came or went
    durations: dict[str, float] = {}

    def tell_on(text: str) -> None:
        if progress is not None:
            progress(ledger.spent, ledger.spent + ledger.left)
        tell(f"{ledger.spent:6.0f} s  {text}")

    def attempt(piece: Piece, seconds: float, *, may_wait: bool) -> bool:
        """Whether the piece is settled: done, or left out for good."""
        nonlocal slower
        decided = stage.folder.decided(piece.name)
        if decided is None:
            choice = choose(piece, stage, seconds, costs, slower, durations)
            if "skip" in choice and may_wait:
                return False
            decided = stage.folder.decide(piece.name, choice | {"seconds": round(seconds, 1)})
        if "skip" in decided:
            tell_on(f"{piece.name}: left out, {decided['skip']}")
            return True
        tell_on(f"{piece.name}: {seconds:.0f} s" + (f", {decided['epochs']} epochs" if "epochs" in decided else ""))
        before = ledger.spent
        try:
            _RUNNERS[piece.kind](piece, stage, decided, tell_on, should_stop)
        finally:
            stage.folder.note_spent(ledger.spent)
        took = ledger.spent - before
        durations[piece.attack] = min(took / fits(piece, stage), durations.get(piece.attack, float("inf")))
        if piece.kind == "attack" and piece.epochs:
            share = decided["images"] / len(stage.sets.train)
            expected = decided["epochs"] * share * costs[piece.name].epoch + costs[piece.name].once
            slower = max(1.0, took / expected)
        return True

    waiting = [piece for piece in pieces if stage.folder.finished(piece.name) is None]
    for may_wait in (True, False):
        turn, waiting = waiting, []
        for index, piece in enumerate(turn):
            seconds = ledger.allowance(piece.share, [one.share for one in turn[index:]])
            settled = True
            with failures.surviving(piece.name, piece.kind):
                settled = attempt(piece, seconds, may_wait=may_wait)
            if piece.name in failures:
                tell_on(f"{piece.name}: FAILED, {failures.why(piece.name)}")
            if not settled:
                waiting.append(piece)
