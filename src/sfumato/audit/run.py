"""One audit from beginning to end: check, plan, attack, bound, judge; resumed or extended by calling again."""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.attacks import Leakage, Reconstruction, measure_leakage, obfuscation
from sfumato.attacks.base import TooSlow
from sfumato.audit.bounds import measure_bounds
from sfumato.audit.context import (
    MOST_IMAGES,
    Context,
    Stop,
    TimeBudget,
    TooLate,
    available_memory,
    limited,
    make_context,
)
from sfumato.audit.folder import AuditFolder
from sfumato.audit.identity import behaviour_of, channel_of, versions
from sfumato.audit.images import shuffled
from sfumato.audit.inversion import Tell, run_attack, run_probes, run_sweep
from sfumato.audit.result import result_of
from sfumato.audit.schema import Untested
from sfumato.audit.subject import Subject, check_subject, digest_of_module, passes_gradients
from sfumato.audit.suite import Piece, affordable, chosen, load_suite, possible
from sfumato.audit.verdict import LEAST_IMAGES, calibrate
from sfumato.data import DataSets, ImageSet
from sfumato.errors import ConfigError, FeatureError, NotJudgedError
from sfumato.files import write_json
from sfumato.torch_utils import evaluating
from sfumato.training.evaluate import accuracy

_BOUNDS_SHARE, _CALIBRATION_SHARE, _LEAKAGE_SHARE = 0.08, 0.1, 0.1  # of the time that is left
_MEASURED_SHARE = 0.25  # after which a measurement is given up
_HURRIED, _THOROUGH = (
    400,
    12.0,
)  # images of a first look at what leaks; times as long as a quick one a thorough one takes
_PATIENCE = 2.0  # times its share that a piece may be expected to take
_FEWEST = 8  # images: a search that has time for fewer is left out
_CHECKED, _CHECKED_VALUES = 512, 2**22  # images at once, and of large ones so many values
_FEATURES_SHARE = 0.03  # of the free memory, for what left the device
_LATER = 1.25  # times its share that a piece may take, where others have left time over
_SCRAMBLED = 1000  # images from which the obfuscation check is made
_LESS, _FEW = 0.8, 128  # of the images that would fit, and at least so many, where not all of them do
_RUNNERS: dict[str, Callable[[Piece, Context, dict[str, Any], Tell, Stop], None]] = {
    "attack": run_attack,
    "queries": run_sweep,
    "knowledge": run_sweep,
    "probe": run_probes,
}


@dataclass(frozen=True)
class Audited:
    """A finished audit.

    Attributes:
        result: as in `audit.json`.
        reconstructed: per attack what it made of the test images of the exposure.
        context: what was attacked, for pictures.
    """

    result: dict[str, Any]
    reconstructed: dict[str, Reconstruction]
    context: Context

    def pictures(self, count: int = 8) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
        """Originals and reconstructions per attack: `worst` (the strongest attack's best) and `typical` (at random).

        Where a posterior was learned, also `samples` of it.
        """
        whole = [one for one in self.reconstructed.values() if len(one.mse) == len(self.context.test)]
        strongest = min(whole, key=lambda one: float(one.mse.mean()))
        worst = strongest.mse.argsort()[:count]
        found = {}
        for name, indices in (("worst", worst), ("typical", torch.arange(min(count, len(strongest.mse))))):
            shown = {
                attack: one.images[indices]
                for attack, one in self.reconstructed.items()
                if int(indices.max()) < len(one.mse)
            }
            found[name] = (self.context.test.images.float(indices), shown)
        for name in (one["name"] for one in self.result["attacks"] if one["attack"] == "posterior"):
            drawn = self.context.folder.tensors(name)["samples"][:, :count].float() / 255
            shown = {f"sample {number}": one for number, one in enumerate(drawn, 1)}
            found["samples"] = (self.context.test.images.float(torch.arange(drawn.shape[1])), shown)
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
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    least_images: int = LEAST_IMAGES,
    other: ImageSet | None = None,
    began: float | None = None,
    ending: float = 0.0,
    tell: Tell | None = None,
    progress: Callable[[float, float], None] | None = None,
    should_stop: Stop | None = None,
) -> Audited:
    """Audit a subject in `out`, resume what an earlier call began there, and write `audit.json`.

    Args:
        subject: see `load_target`.
        sets: the attacker's images (`train`) and images that it never saw (`test`).
        out: folder of the audit.
        minutes: for the whole audit over all calls, kept within a tenth from one minute on. More than an earlier call
            had extend its audit: what was left out runs, and attacks that had not converged are trained again, for
            longer.
        seed: of everything random.
        device: where to compute.
        suite: the pieces; those of `suite.yaml`, if not said.
        only: names of the pieces to run; all, if empty.
        skip: names of pieces to leave out.
        least_images: of the attacker's and of test images, below which the audit is not judged.
        other: images of another origin, for an attacker who has them instead of the training set.
        began: `time.monotonic()` when the budget started to run; now, if not said.
        ending: seconds of the budget that whoever calls needs afterwards, for a report.
        tell: called with a line about what goes on.
        progress: called with (seconds used, seconds in all).
        should_stop: asked after every step of an attack; True saves and leaves.

    Raises:
        ConfigError: the budget is not positive, or `only` and `skip` name no pieces.
        FeatureError: the encoder cannot be audited; the sentence says why.
        CheckpointError: `out` holds another audit; the sentence says in what they differ.
        Interrupted: `should_stop` said so; the same call resumes.
        NotJudgedError: every attack failed.
    """
    if not minutes > 0:
        raise ConfigError(f"minutes is {minutes}; give a positive number")
    if len(sets.test) < 4:
        raise ConfigError(f"{len(sets.test)} test images are too few for an audit; give at least 4")
    early, place = 0.0 if began is None else time.monotonic() - began, torch.device(device)
    suite = load_suite() if suite is None else suite
    wanted, unwanted = chosen(suite, only, skip)
    model = subject.model
    if next(model.parameters(), None) is None:  # by one of them everything finds its device
        model.place = nn.Parameter(torch.zeros(()), requires_grad=False)
    subject = subject if subject.digest else replace(subject, digest=digest_of_module(model))
    model.to(place)
    with evaluating(model, gradients=True):
        many = max(4, min(_CHECKED, _CHECKED_VALUES // math.prod(sets.test.image_shape)))
        check_subject(subject, sets.test.float(torch.arange(many) % len(sets.test)).to(place))
        behaviour = behaviour_of(subject, sets.test.image_shape)
        identity = {
            "target": subject.digest,
            "behaviour": behaviour,
            "channel": channel_of(subject),
            "versions": versions(),
            "train": sets.train.fingerprint(),
            "test": sets.test.fingerprint(),
            "seed": seed,
            "other": None if other is None else other.fingerprint(),
            "suite": hashlib.sha256(repr(tuple(suite)).encode()).hexdigest(),
        }
        folder = AuditFolder(out, identity)
        if folder.extend(minutes):
            for piece in suite:
                if piece.epochs and (folder.finished(piece.name) or {}).get("converged") is False:
                    folder.reopen(piece.name)
        minutes = folder.minutes
        budget = TimeBudget(60 * minutes, folder.spent + early, reserve=ending + 1.8 * minutes)
        one = sets.test.float(torch.arange(1)).to(place)
        fits = _FEATURES_SHARE * available_memory(place) / (4 * model.features(one).numel())
        context = make_context(
            subject,
            sets,
            gradients=passes_gradients(subject, one),
            device=place,
            seed=seed,
            folder=folder,
            most=folder.decide("images", max(4, int(min(MOST_IMAGES, fits)))),
            other=other,
        )
        run = _Run(context, budget, minutes, tell or (lambda _: None), progress, should_stop)
        run.measure()
        pieces, untested = possible(wanted, context, minutes)
        run.work(pieces)
        return run.finish(pieces, [*untested, *unwanted], behaviour, least_images)


@dataclass
class _Run:
    """What the steps of one call share."""

    context: Context
    budget: TimeBudget
    minutes: float
    tell: Tell
    progress: Callable[[float, float], None] | None
    should_stop: Stop | None
    seconds_per_image: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def measure(self) -> None:
        """What needs no attack: identification, the attacks' calibration, bounds."""
        context, folder = self.context, self.context.folder
        if folder.finished("leakage") is None:
            self._note("identification and information")
            folder.finish("leakage", self._leakage().as_dict())
        leakage = Leakage(**(folder.finished("leakage") or {}))
        seconds = self.budget.left
        self._once("calibration", "on the identity channel", lambda: calibrate(context, _CALIBRATION_SHARE * seconds))
        self._once("obfuscation", "whether the feature is scrambled", self._scrambled)
        how: Any = {"gradients": context.gradients, "seconds": _BOUNDS_SHARE * self.budget.left, "seed": context.seed}
        self._once("bounds", "what is provable", lambda: {
            "bounds": measure_bounds(self.context.subject, self.context.sets, leakage, **how)
        })  # fmt: skip

    def _leakage(self) -> Leakage:
        """From few images and in a hurry first; as tight as it gets where the time that took allows it."""
        model, images, seed = self.context.subject.model, self.context.test.images, self.context.seed
        until = time.monotonic() + _LEAKAGE_SHARE * self.budget.left
        began = time.monotonic()
        found = measure_leakage(model, images, seed=seed, most=_HURRIED, quick=True)
        for quick, longer in ((True, (len(images) / _HURRIED) ** 2), (False, _THOROUGH)):
            if longer <= 1:
                continue
            now = time.monotonic()
            if now + longer * (now - began) > until:
                break
            found, began = measure_leakage(model, images, seed=seed, quick=quick), now
        return found

    def _once(self, name: str, words: str, compute: Callable[[], dict[str, Any] | None]) -> None:
        """What is measured once over all calls, and costs itself alone where it fails or takes too long."""
        if self.context.folder.finished(name) is None:
            self._note(f"{name}: {words}")
            limit = time.monotonic() + _MEASURED_SHARE * self.budget.left
            with self.context.folder.surviving(name, name), limited(self.context.subject.model, limit):
                if (found := compute()) is not None:
                    self.context.folder.finish(name, found)

    def _scrambled(self) -> dict[str, Any]:
        some = shuffled(self.context.sets.train, _SCRAMBLED, self.context.seed, "obfuscation")
        moved = obfuscation(self.context.subject.model, some, seed=self.context.seed)
        return asdict(moved) | {"obfuscated": moved.obfuscated, "sentence": moved.sentence}

    def work(self, pieces: Sequence[Piece]) -> None:
        """Run what is not finished; each piece gets its share of what is left when it begins.

        What does not fit waits until the others are done: attacks that come to rest early leave time over.
        """
        waiting = [piece for piece in pieces if self.context.folder.finished(piece.name) is None]
        for again in (False, True):
            turn, waiting = waiting, []
            for index, piece in enumerate(turn):
                seconds = self.budget.left * piece.share / sum(one.share for one in turn[index:])
                with self.context.folder.surviving(piece.name, piece.kind):
                    if (why := self._attempt(piece, seconds)) is not None:
                        waiting.append(piece)
                        why = self.skipped.setdefault(piece.name, why)  # a second try has less to say
                        if again:
                            self._note(f"{piece.name}: left out, {why}")
                if failed := self.context.folder.failed.get(piece.name):
                    self._note(f"{piece.name}: FAILED, {failed['why']}")

    def _note(self, text: str) -> None:
        if self.progress is not None:
            self.progress(self.budget.spent, self.budget.spent + self.budget.left)
        self.tell(f"{self.budget.spent:6.0f} s  {text}")

    def _attempt(self, piece: Piece, seconds: float) -> str | None:
        """Do the piece, or say why it is left out."""
        folder, total = self.context.folder, len(self.context.sets.train)
        try:
            self._run(piece, seconds, folder.decided(piece.name) or self._decide(piece, seconds))
            self.skipped.pop(piece.name, None)
        except TooLate as late:
            return str(late)
        except TooSlow as slow:
            folder.forget(piece.name)
            if piece.minutes == 0:  # the same epochs of fewer images
                images = max(_FEW, round(_LESS * slow.share * total))
                try:
                    self._run(piece, seconds, {"images": min(images, total)})
                except TooLate as late:
                    return str(late)
                return None
            enough = math.ceil(float(f"{self.minutes / max(slow.share, 1e-6):.2g}"))
            return f"too little time: give about --minutes {max(enough, math.ceil(self.minutes) + 1)} or more"
        finally:
            folder.note_spent(self.budget.spent)
        return None

    def _decide(self, piece: Piece, seconds: float) -> dict[str, int]:
        """How many images a search shows; TooLate where a piece is not worth beginning."""
        if piece.minutes == 0:
            return {}
        if seconds <= 0:
            raise TooLate("too little time: give more --minutes")
        if piece.attack == "optimization":
            with limited(self.context.subject.model, time.monotonic() + seconds):
                if (shown := affordable(piece, self.context, seconds)) >= _FEWEST:
                    return {"shown": shown}
            raise TooLate("too little time for a search image by image: give more --minutes")
        expected = self.seconds_per_image.get(piece.attack, 0.0) * piece.options.get(
            "train", len(self.context.sets.train)
        )
        if expected > _PATIENCE * seconds:
            raise TooLate(f"too little time: give more than {seconds:.0f} s, its share of --minutes")
        return {}

    def _run(self, piece: Piece, seconds: float, decided: dict[str, Any]) -> None:
        """Do the piece as it was decided, which is written down before, so that an interrupted one is resumed."""
        if decided:
            decided = self.context.folder.decide(piece.name, decided)
        self._note(f"{piece.name}: {seconds:.0f} s")
        began = time.monotonic()
        deadline = began + min(_LATER * seconds, self.budget.left)
        # What a pass needs is given up only at the end: its deadline ends the fit, and without figures a fit is lost.
        # Below a minute nobody counts seconds.
        limit = deadline + seconds if piece.minutes else self.budget.end
        if self.minutes < 1 and piece.minutes == 0:
            limit = max(limit, began + 60)
        with limited(self.context.subject.model, limit, self.should_stop) as stop:
            _RUNNERS[piece.kind](piece, self.context, decided | {"deadline": deadline}, self._note, stop)
        if piece.kind == "attack" and piece.attack not in self.seconds_per_image:
            done = self.context.folder.finished(piece.name) or {}
            self.seconds_per_image[piece.attack] = (time.monotonic() - began) / done["images"]

    def finish(
        self, pieces: Sequence[Piece], untested: Sequence[Untested], behaviour: str, least_images: int
    ) -> Audited:
        """Put together what there is, and write it."""
        context, folder = self.context, self.context.folder
        subject, sets = context.subject, context.sets
        for piece in pieces:
            folder.keep(piece.name)  # what was to be trained for longer and was not
        untested = [*untested, *(Untested(name, why, left_out=True) for name, why in self.skipped.items())]
        pieces = [piece for piece in pieces if folder.finished(piece.name) is not None]
        if not any(piece.kind == "attack" for piece in pieces):
            reasons = [f"{one['what']}: {one['why']}" for one in folder.failed.values()]
            reasons += [f"{one.what}: {one.why}" for one in untested]
            raise NotJudgedError("no attack could be run: " + "; ".join(reasons))
        if behaviour_of(subject, sets.test.image_shape) != behaviour:
            raise FeatureError(
                "the encoder answers differently now than when the audit began: what it computes depends on how often "
                "it was asked, so no figure says what will leave the device; take the state out of it"
            )
        share = None
        if subject.classifies and sets.labelled:
            with folder.surviving("accuracy", "accuracy"):
                share = accuracy(subject.model, sets.test, seed=context.seed)
        folder.note_spent(self.budget.spent)
        budget = {"minutes": self.minutes, "seconds": round(self.budget.spent, 1)}
        result, reconstructed = result_of(
            context, pieces, untested, behaviour=behaviour, accuracy=share, budget=budget, least_images=least_images
        )
        write_json(folder.path / "audit.json", result)
        return Audited(result, reconstructed, context)
