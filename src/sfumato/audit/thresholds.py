"""`--fail-if "psnr_worst5 > 20"`: when an audit fails a release, in words that a program understands."""

import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sfumato.errors import ConfigError

_KINDS = {
    "mse": "mean squared error per pixel, pixels in [0, 1]; smaller is reconstructed better",
    "psnr": "peak signal-to-noise ratio in dB; larger is reconstructed better",
    "ssim": "structural similarity; larger is reconstructed better",
}
_SPREADS = {
    "mean": "mean over the images",
    "worst5": "mean over the 5 % of the images that are reconstructed best",
    "worst": "of the image that is reconstructed best",
}

METRICS: dict[str, str] = {
    **{f"{kind}_{spread}": f"{text}; {words}" for kind, text in _KINDS.items() for spread, words in _SPREADS.items()},
    "ssim_any_worst5": "as ssim_worst5, with the best attacker for each image",
    "psnr_any_worst5": "as psnr_worst5, with the best attacker for each image",
    "mse_any_mean": "as mse_mean, with the best attacker for each image",
    "mse_mean_train": "as mse_mean, on training images",
    "psnr_worst5_train": "as psnr_worst5, on training images",
    "ssim_worst5_train": "as ssim_worst5, on training images",
    "mse_ratio": "mse_mean over the error of an attacker that sees nothing and answers with the mean image",
    "mse_mean_repeated": "the smallest mean MSE over all numbers of repeated queries that were tried",
    "identified": "share of the unseen images that an attacker, who has them all, names rightly; larger leaks more",
    "identified_at_most": "what no attacker exceeds in that, by the lower of the certificates; 1 without noise",
    "information": "upper bound on the information that crosses the wire, in nats, on held-out features",
    "accuracy": "share of test images that the decoder recognises from what leaves the device",
    "unconverged": "how many attacks had not converged",
    "left_out": "how many pieces were left out for lack of time or memory, or by request, or failed",
}
"""What a threshold may name. Without another word: of the strongest attack, on test images, for a single query."""

TEXT_METRICS: dict[str, str] = {
    "tokens": "share of the unseen texts' tokens that are recovered, by the nearest token at each position",
    "information": METRICS["information"],
    "accuracy": "share of labelled test texts that the decoder recognises from what leaves the device",
}
"""What a threshold may name where the model is one of texts."""

BROKEN = ("no contradiction", "no attack failed")
"""Requirements without which nothing that the audit says is worth anything, also where nobody asked for a pass."""

_KIND_OF = {"mse_mean_repeated": "queries", "accuracy": "accuracy"}
"""The kind of piece that a metric rests on, where it is not the attacks."""


_OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_FORM = re.compile(r"\s*([A-Za-z_]\w*)\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


class Threshold(NamedTuple):
    """A condition under which an audit fails.

    Attributes:
        text: as given.
        metric: one of `METRICS`, or of `TEXT_METRICS`.
        sign: `>`, `>=`, `<` or `<=`.
        limit: the number.
    """

    text: str
    metric: str
    sign: str
    limit: float

    def holds(self, value: float) -> bool:
        """Whether the condition, and so the failure, is there; NaN fails."""
        return math.isnan(value) or bool(_OPERATORS[self.sign](value, self.limit))


def parse_threshold(text: str) -> Threshold:
    """`METRIC > NUMBER`, with `>`, `>=`, `<` or `<=`.

    Raises:
        ConfigError: it is not of that form, the metric is unknown, or the condition points towards less leakage.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"the threshold {text!r} cannot be read; write METRIC, one of > >= < <=, and a number, such as "
            "'psnr_worst5 > 20', and give several as several words"
        )
    metric, sign, limit = found.groups()
    if metric not in (known := METRICS | TEXT_METRICS):
        raise ConfigError(f"the threshold {text!r} names an unknown metric; known are {', '.join(known)}")
    wanted, better = ("<", "larger") if metric.startswith(("mse", "accuracy")) else (">", "smaller")
    if sign[0] != wanted:
        raise ConfigError(
            f"the threshold {text!r} would fail a model for being better, because a {better} {metric} is better; write "
            f"'{metric} {wanted} NUMBER'"
        )
    return Threshold(text, metric, sign, float(limit))


def judge(
    thresholds: Sequence[Threshold],
    metrics: Mapping[str, float | None],
    failed: Sequence[Mapping[str, str]] = (),
    *,
    pessimistic: Mapping[str, float | None] | None = None,
    unmet: bool = False,
) -> list[dict[str, Any]]:
    """Each threshold with its value and whether it holds; None where that cannot be said.

    A value that was measured on a sample is judged at the end of its 95 % interval at which more has leaked. NaN fails.
    A condition that does not hold passes only where everything is there that a pass needs: what was not measured, what
    failed and might have made it hold, and a requirement that is not met leave it open.

    Args:
        thresholds: conditions under which the audit fails.
        metrics: of the audit.
        failed: its `failed` pieces.
        pessimistic: the ends of the intervals; the metrics themselves, if not said.
        unmet: whether something is missing that a pass needs.
    """
    broken = {one["kind"] for one in failed}
    ends = metrics if pessimistic is None else pessimistic
    judged = []
    for one in thresholds:
        value = metrics.get(one.metric)
        end = ends.get(one.metric, value)
        holds: bool | None = end is not None and one.holds(end)
        if not holds and (end is None or unmet or _KIND_OF.get(one.metric, "attack") in broken):
            holds = None
        shown = {"value": value, "pessimistic": end}
        judged.append(
            {"expression": one.text, "metric": one.metric, "limit": one.limit, "holds": holds}
            | {name: what if what is not None and math.isfinite(what) else None for name, what in shown.items()}
        )
    return judged


def conclude(result: dict[str, Any], thresholds: Sequence[Threshold]) -> dict[str, Any]:
    """The result with its thresholds judged, and the outcome in one sentence: passed, failed, or why not judged.

    Without thresholds there is nothing to pass, and only what is broken leaves an audit not judged.
    """
    missing = [one for one in result["requirements"] if not one["met"]]
    judged = judge(
        thresholds, result["metrics"], result["failed"], pessimistic=result["pessimistic"], unmet=bool(missing)
    )
    crossed = [one for one in judged if one["holds"]]
    unmet = [one for one in missing if thresholds or one["name"] in BROKEN]
    open_ = [one["metric"] for one in judged if one["holds"] is None]
    if crossed:
        outcome, words = "failed", "; ".join(_crossed(one) for one in crossed)
    elif unmet:
        more = f" (and {len(unmet) - 1} more)" if len(unmet) > 1 else ""
        outcome, words = "not judged", unmet[0]["sentence"] + more
    elif open_:
        outcome, words = "not judged", f"not everything was measured that {', '.join(open_)} rests on"
    elif judged:
        outcome, words = "passed", f"none of the {len(judged)} conditions holds"
    else:
        outcome, words = "no condition", "none was given that a model could pass or fail"
    verdict = result["verdict"] | {"outcome": outcome, "sentence": f"{outcome.capitalize()}: {words}."}
    return result | {"thresholds": judged, "verdict": verdict}


def _crossed(line: Mapping[str, Any]) -> str:
    if line["value"] is None:
        return f"{line['metric']} is not a number"
    end = line["pessimistic"]
    margin = "" if end == line["value"] else f", and may be {end:.4g}"
    return f"{line['expression']} ({line['metric']} is {line['value']:.4g}{margin})"
