"""What a search found, as plain values and as sentences that claim no more than was measured."""

import math
from typing import Any

from sfumato.studies.judge import Book
from sfumato.studies.search import Searched
from sfumato.studies.space import BASELINE, Floor, Setting


def describe(found: Searched, floor: Floor) -> dict[str, Any]:
    """`status`, `headline`, `notes`, `chosen`, `baseline`, `curve` and `asked` of `tune.json`.

    `status` is `found`, `none` (no setting meets the floor) or `unfinished` (the budget ended first).
    """
    book, chosen = found.book, found.chosen
    status = "unfinished" if found.decision is None else "none" if chosen is None else "found"
    asked = () if found.decision is None else found.decision.asked
    curve = [_row(book, setting, chosen, asked) for setting in book.settings()]
    baseline = None
    if shown := book.measurements(BASELINE):
        baseline = {
            "accuracy": book.accuracy(BASELINE),
            "error": book.error(BASELINE),
            **_leakage(book, BASELINE),
            "trainings": len(shown),
        }
    found_row = next((row for row in curve if row["verdict"] == "chosen"), None)
    return {
        "status": status,
        "headline": _headline(status, found_row, baseline, floor, found.stopped),
        "notes": _notes(found, found_row, floor),
        "chosen": found_row,
        "baseline": baseline,
        "curve": curve,
        "asked": [one.as_dict() for one in asked],
    }


def _row(book: Book, setting: Setting, chosen: Setting | None, asked: tuple[Setting, ...]) -> dict[str, Any]:
    both, confirming = book.loss(setting), book.loss(setting, "confirming")
    records = book.measurements(setting)
    if setting == chosen:
        verdict = "chosen"
    elif book.fails(setting):
        verdict = "fails"
    elif not book.complete(setting):
        verdict = "not followed"
    elif not book.passes(setting):
        verdict = "not shown to meet it"
    else:
        verdict = "not confirmed" if setting in asked else "meets it"
    return setting.as_dict() | {
        "trainings": len(records),
        "images": both.images,
        "accuracy": book.accuracy(setting),
        "accuracy_selecting": book.accuracy(setting, "selecting"),
        "accuracy_confirming": book.accuracy(setting, "confirming"),
        "loss": both.mean,
        "loss_se": _finite(both.error),
        "loss_confirming": confirming.mean,
        "loss_confirming_se": _finite(confirming.error),
        "error": book.error(setting),
        "error_confirming": book.error(setting, "confirming"),
        **_leakage(book, setting),
        "converged": book.converged(setting),
        "verdict": verdict,
    }


def _leakage(book: Book, setting: Setting) -> dict[str, Any]:
    return {"strongest": book.strongest(setting)} | {
        name: book.leakage(setting, name) for name in ("identified", "information")
    }


def _headline(
    status: str, chosen: dict[str, Any] | None, baseline: dict[str, Any] | None, floor: Floor, stopped: str | None
) -> str:
    if chosen is not None and baseline is not None:
        setting = Setting.of(chosen).describe()
        text = (
            f"{setting[:1].upper() + setting[1:]}: {_points(chosen['loss_confirming'])} on held-out images that chose "
            f"nothing, the strongest attacker's error {chosen['error_confirming']:.4f} instead of "
            f"{baseline['error']:.4f}"
        )
        if chosen["identified"] is not None and baseline["identified"] is not None:
            text += f", identified {chosen['identified']:.0%} instead of {baseline['identified']:.0%}"
        if status == "unfinished":
            return f"So far: {text}. The search was stopped by --{stopped}; the same command resumes it."
        return f"{text}."
    if status == "unfinished":
        return f"No setting is known yet to meet the floor; --{stopped} ended the search, the same command resumes it."
    return f"No setting on this grid is shown to meet the floor ({floor.describe()})."


def _notes(found: Searched, chosen: dict[str, Any] | None, floor: Floor) -> list[str]:
    book, space, notes = found.book, found.book.space, []
    if chosen is not None:
        upper = chosen["loss"] + book.quantile * (chosen["loss_se"] or 0.0)
        notes.append(
            f"Floor: {floor.describe()}. On all {chosen['images']} held-out images {_points(chosen['loss'])} "
            f"(± {100 * (chosen['loss_se'] or 0.0):.1f}), with {space.confidence:.0%} confidence at most "
            f"{100 * upper:.1f} points lost."
        )
        if chosen["lam"] == space.lams[-1]:
            notes.append(
                f"Lambda {chosen['lam']:g} is the largest that was tried; a larger one may protect better: --lams."
            )
        if chosen["lam"] == 0:
            notes.append("It did better without CEM than with it here.")
    elif found.decision is not None:
        notes += _why_none(book, floor)
    if found.decision is not None and len(found.decision.asked) > 1:
        notes.append(
            f"{len(found.decision.asked)} settings were asked for confirmation one after another, which makes the "
            "confirming half a little less independent each time."
        )
    if any(book.converged(one) is False for one in book.settings()):
        notes.append("Some attacks had not converged: their errors are no evidence of safety.")
    return notes


def _why_none(book: Book, floor: Floor) -> list[str]:
    if not book.settings():
        reached = f"The undefended baseline itself reaches {book.accuracy(BASELINE):.1%}; nothing was searched."
        return [f"{reached} Train longer, or ask less."]
    best = max(book.settings(), key=lambda one: book.slack(one, "both").mean)
    slack, loss = book.slack(best, "both"), book.loss(best)
    notes = [f"The closest is {best.describe()}: {_points(loss.mean)} (± {100 * loss.error:.1f})."]
    if slack.mean >= 0:
        notes.append(
            f"It meets the floor on average, but {slack.images} held-out images do not show it with "
            f"{book.space.confidence:.0%} confidence: use more images, or a lower --confidence."
        )
    else:
        notes.append("Try weaker settings (--noise-stds, --lams), or a lower floor.")
    return notes


def _points(loss: float) -> str:
    points = 100 * loss
    if abs(points) < 0.05:
        return "no accuracy lost"
    return f"{points:.1f} points lost" if points > 0 else f"{-points:.1f} points gained"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
