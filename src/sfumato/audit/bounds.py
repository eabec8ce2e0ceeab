"""What is provable about a subject, each bound with its assumption in words, and whether an attack contradicts one."""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfumato import bounds
from sfumato.attacks import Leakage
from sfumato.audit.subject import GaussianPrior, Subject
from sfumato.data import DataSets, ImageSet
from sfumato.seeds import generator
from sfumato.split import Channel, SplitModel, jacobian, projected_jacobian
from sfumato.training.evaluate import collect_features

_MOST_PIXELS = 4096  # beyond that many the d x d matrix of van Trees' bound gives way to a low-rank form
_MOST_ROWS = 1024  # features with more values are probed with random projections
_PROBES = 256
_MOST_IMAGES = 64
_MOST_VALUES = 1 << 27  # of all Fisher matrices or factors together: a gigabyte
_SETTLED = 0.02
_LEAST_VARIANCE = 1e-4  # of a pixel in a prior estimated from images: a hundredth of the range as standard deviation


def measure_bounds(
    subject: Subject, sets: DataSets, leakage: Leakage, *, gradients: bool, seconds: float, seed: int
) -> list[dict[str, Any]]:
    """Every bound that this subject allows, as `schema.Bound` describes them; the Jacobians take about `seconds`."""
    if subject.model.channel.noise.singular:  # a direction is sent as it is, and nothing is provable
        return []
    found: list[dict[str, Any]] = []
    if subject.exact_mse is not None:
        found.append(
            _bound(
                "exact", "exact minimal error", subject.exact_mse, "error",
                "The target declares its images' distribution and its minimal error in closed form (Proposition 1).",
                gates=True,
            )
        )  # fmt: skip
    information, size = list(_information(subject, sets, leakage)), math.prod(sets.test.image_shape)
    found += information
    found += [
        _bound(
            f"floor_ratio_{one['name']}", f"floor left by Theorem 1, from {one['label']}",
            float(bounds.floor_ratio(max(0.0, one["value"]), size)), "ratio",
            "Relative: the unknown entropy of the images cancels. It says how far the floor under the error has sunk "
            "from where it would be if nothing were released, not where it is.",
            notes=one["notes"], information=one["value"],
        )
        for one in information
    ]  # fmt: skip
    return [*found, *_local(subject, sets, seconds, seed)] if gradients else found


def _bound(name: str, label: str, value: float, kind: str, assumption: str, **more: Any) -> dict[str, Any]:
    unit = {"error": "MSE", "information": "nats", "ratio": ""}[kind]
    entry = {"name": name, "label": label, "value": value, "unit": unit, "kind": kind, "assumption": assumption}
    return entry | {"gates": False, "notes": []} | more


def _information(subject: Subject, sets: DataSets, leakage: Leakage) -> Iterator[dict[str, Any]]:
    channel = subject.model.channel
    features = collect_features(subject.model, sets.test.images[:2048].to(subject.device))
    size = features.shape[1]
    enforced = channel.clip_norm is not None
    if enforced or (float(features.min()) >= channel.low and float(features.max()) <= channel.high):
        radius = channel.clip_norm or (channel.high - channel.low) / 2 * math.sqrt(size)
        yield _bound(
            *(("clipped_power", "clipped power") if enforced else ("bounded_power", "bounded power")),
            float(bounds.clipped_power_information(radius, channel.noise.smallest, size)), "information",
            f"The device clips every feature to the L2 norm {radius:g} and adds Gaussian noise. Nothing is assumed "
            "about the images." if enforced else
            f"The encoder's output lies in [{channel.low:g}, {channel.high:g}] for every input, as it does for the "
            "images here; the device does not enforce it.",
        )  # fmt: skip
    if leakage.information is not None:
        yield _bound(
            "held_out", "held-out information", leakage.information, "information",
            "In the mean over images like the test images, from which the encoder did not learn. No distribution of "
            "features is assumed.",
            notes=[f"± {leakage.information_error:.2g}, the standard error over {leakage.candidates} images"],
            standard_error=leakage.information_error,
        )  # fmt: skip


def _local(subject: Subject, sets: DataSets, seconds: float, seed: int) -> Iterator[dict[str, Any]]:
    """What rests on the Jacobians: van Trees and dFIL."""
    size = math.prod(sets.test.image_shape)
    low_rank = size > _MOST_PIXELS
    declared = subject.prior is not None and not low_rank
    prior, prior_words = _prior(subject.prior, sets.train, low_rank=low_rank)
    probes = min(_PROBES, max(8, _MOST_VALUES // (16 * size))) if low_rank else _PROBES
    bound = bounds.van_trees_low_rank if low_rank else bounds.van_trees
    found = list(_slopes(subject, sets.test, low_rank, probes, seconds, seed))
    leakage, exact, count = [one.dfil for one in found], found[0].exact, len(found)
    whole, half = (float(bound(_mean_information(found[:n], low_rank), prior)) for n in (count, max(1, count // 2)))
    sample = [f"from {count} images" + ("" if exact else f", with {probes} random projections of each Jacobian")]
    settled = abs(half - whole) <= _SETTLED * whole
    gates = declared and settled
    if not settled:
        sample.append(f"half of them give {half:.3g}: with more images the value would still fall")
    assumption = f"Images are drawn from {prior_words}" + (
        ", from which this target draws them." if declared
        else ". Photographs are not, so the value is an illustration and limits nobody."
    )  # fmt: skip
    yield _bound(
        "van_trees", "van Trees" + (", low rank" if low_rank else ", matrix"), whole, "error", assumption,
        gates=gates, notes=sample, from_half=half, images=count,
    )  # fmt: skip
    ordered = torch.tensor(leakage, dtype=torch.float64).sort(descending=True).values
    worst = max(1, math.ceil(0.05 * count))
    yield _bound(
        "dfil", "1 / dFIL, median image", 1 / max(float(ordered.median()), 1e-12), "error",
        "Unbiased attackers only. Every attack here knows what images look like, so it is biased, and may do better.",
        notes=sample[:1],
        dfil={
            "mean": float(ordered.mean()),
            "median": float(ordered.median()),
            "worst5": float(ordered[:worst].mean()),
            "worst": float(ordered[0]),
        },
        per_image=leakage,
    )  # fmt: skip


class _InNoise(nn.Module):
    """z_hat in units of the noise."""

    def __init__(self, model: SplitModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.channel.noise.whiten(self.model.features(x))


class _Slope(NamedTuple):
    """What one image's Jacobian J tells: the Fisher information J^T J / sigma^2, or a factor of it, and dFIL."""

    information: Tensor
    dfil: float
    exact: bool


def _slopes(
    subject: Subject, images: ImageSet, low_rank: bool, probes: int, seconds: float, seed: int
) -> Iterator[_Slope]:
    """For as many images as there are time and memory; at least 2."""
    model, variance = subject.model, subject.model.channel.noise_std**2
    if not model.channel.noise.white:  # Sigma_p^-1/2 J in the place of J
        model, variance = SplitModel(_InNoise(model), Channel(), model.cloud), 1.0
    random = generator(seed, "audit-probes")
    began = time.monotonic()
    size = math.prod(images.image_shape)
    each = 4 * probes * size if low_rank else size**2  # factors are copied where they are put together
    for index in range(min(_MOST_IMAGES, len(images), max(2, _MOST_VALUES // each))):
        if index >= 2 and (time.monotonic() - began) * (index + 1) / index > seconds:
            break
        x = images.float(torch.tensor([index])).to(subject.device)
        with torch.no_grad():
            exact = model.features(x).numel() <= _MOST_ROWS and not low_rank
        slope = (jacobian(model, x) if exact else projected_jacobian(model, x, probes, random)).cpu()
        compute = bounds.fisher_factor if low_rank else bounds.fisher_information
        yield _Slope(compute(slope, variance).double(), float(bounds.dfil(slope, variance)[0]), exact)


def _mean_information(slopes: Sequence[_Slope], low_rank: bool) -> Tensor:
    parts = [one.information for one in slopes]
    return torch.cat(parts) / len(parts) ** 0.5 if low_rank else sum(parts[1:], parts[0]) / len(parts)


def _prior(prior: GaussianPrior | None, train: ImageSet, *, low_rank: bool) -> tuple[Tensor, str]:
    """J_P, the inverse covariance of a Gaussian, or its diagonal (d,) for a low-rank bound; and where it is from."""
    if low_rank:
        variances = train.float().flatten(1).double().var(0).clamp(min=_LEAST_VARIANCE)
        return 1 / variances, "independent pixels with the variances of the attacker's images"
    if prior is not None:
        return torch.linalg.inv(prior.covariance.double()), "the declared distribution"
    x = train.float(torch.arange(min(len(train), 20_000))).flatten(1).double()
    floor = _LEAST_VARIANCE * torch.eye(x.shape[1], dtype=torch.float64)
    covariance = torch.cov(x.T) if len(x) > 1 else torch.zeros_like(floor)
    return torch.linalg.inv(covariance + floor), "a Gaussian with the mean and covariance of the attacker's images"


_ERRORS = 3.0
_BUG = "whose assumptions hold here: the attack or the bound has a bug, and this report proves nothing"


def check_consistency(
    attacks: Sequence[dict[str, Any]], bounds: Sequence[dict[str, Any]], leakage: Leakage
) -> dict[str, Any]:
    """`schema.Consistency`: every attack's mean test error beside every bound that gates, and identification beside its
    certificates.
    """
    gating = [floor for floor in bounds if floor["gates"] and floor["kind"] == "error"]
    certificates = {
        name: value
        for name in ("identified_at_most", "clipped_at_most")
        if (value := getattr(leakage, name)) is not None
    }
    below = [
        (
            attack["name"], floor["name"], mse["mean"], mse["error"], floor["value"],
            f"the mean test error of the {attack['name']} attack, {mse['mean']:.5f} ± {mse['error']:.5f}, lies below "
            f"the bound '{floor['label']}', {floor['value']:.5f}",
        )
        for floor in gating
        for attack in attacks
        for mse in [attack["test"]["mse"]]
        if mse["mean"] + _ERRORS * mse["error"] < floor["value"]
    ]  # fmt: skip
    below += [
        (
            "identification", name, leakage.identified, leakage.identified_error, value,
            f"the attacker who names images is right for {leakage.identified:.3%} ± {leakage.identified_error:.3%} of "
            f"{leakage.candidates}, above the certificate '{name}', {value:.3%}",
        )
        for name, value in certificates.items()
        if leakage.identified - _ERRORS * leakage.identified_error > value
    ]  # fmt: skip
    names = ("attack", "bound", "measured", "error", "value", "sentence")
    violations = [dict(zip(names, (*one, f"{words}, {_BUG}"), strict=True)) for *one, words in below]
    return {"checked": [*(floor["name"] for floor in gating), *certificates], "violations": violations}
