"""`--fail-if "psnr_worst5 > 20"`: when an audit fails a release, in words that a program understands."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.errors import ConfigError

__all__ = ["METRICS", "Threshold", "judge", "parse_threshold"]

_KINDS = {
    "mse": "mean squared error per pixel, pixels in [0, 1]; smaller is redrawn better",
    "psnr": "peak signal-to-noise ratio in dB; larger is redrawn better",
    "ssim": "structural similarity; larger is redrawn better",
}
_SPREADS = {
    "mean": "mean over the images",
    "worst5": "mean over the 5 % of the images that are redrawn best",
    "worst": "of the image that is redrawn best",
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
}
"""What a threshold may name. Without another word: of the strongest attack, on test images, for a single query."""

_KIND_OF = {"mse_mean_repeated": "queries", "accuracy": "accuracy"}
"""The kind of piece that a metric rests on, where it is not the attacks."""

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_FORM = re.compile(r"\s*([A-Za-z_]\w*)\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Threshold:
    """A condition under which an audit fails.

    Attributes:
        text: as given.
        metric: one of `METRICS`.
        sign: `>`, `>=`, `<` or `<=`.
        limit: the number.
    """

    text: str
    metric: str
    sign: str
    limit: float

    def holds(self, value: float) -> bool:
        """Whether the condition, and so the failure, is there."""
        return _OPERATORS[self.sign](value, self.limit)


def parse_threshold(text: str) -> Threshold:
    """`METRIC > NUMBER`, with `>`, `>=`, `<` or `<=`.

    Raises:
        ConfigError: it is not of that form, or the metric is unknown.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"the threshold {text!r} cannot be read; write METRIC, one of > >= < <=, and a number, such as "
            "'psnr_worst5 > 20', and give several as several words"
        )
    metric, sign, limit = found.groups()
    if metric not in METRICS:
        raise ConfigError(f"the threshold {text!r} names an unknown metric; known are {', '.join(METRICS)}")
    return Threshold(text, metric, sign, float(limit))


def judge(
    thresholds: Sequence[Threshold], metrics: Mapping[str, float | None], failed: Sequence[Mapping[str, str]] = ()
) -> list[dict[str, Any]]:
    """Each threshold with its value and whether it holds; None where that cannot be said.

    What was not measured must not pass unseen, and neither must a condition that does not hold while a piece that it
    rests on has failed: that piece might have made it hold.

    Args:
        thresholds: conditions under which the audit fails.
        metrics: of the audit.
        failed: its `failed` pieces.
    """
    broken = {one["kind"] for one in failed}
    judged = []
    for threshold in thresholds:
        value = metrics.get(threshold.metric)
        holds = value is not None and threshold.holds(value)
        open_question = value is None or _KIND_OF.get(threshold.metric, "attack") in broken
        judged.append(
            {
                "expression": threshold.text,
                "metric": threshold.metric,
                "value": value,
                "limit": threshold.limit,
                "holds": None if open_question and not holds else holds,
            }
        )
    return judged
