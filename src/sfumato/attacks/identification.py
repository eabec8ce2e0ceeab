"""Which of N candidate images was sent: the attack that people fear, beside what no attack can exceed."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato import bounds
from sfumato.attacks.queries import encode_repeated
from sfumato.data import ImageSet
from sfumato.errors import ConfigError, FeatureError
from sfumato.mixture import held_out_information
from sfumato.seeds import generator
from sfumato.split import SplitModel
from sfumato.torch_utils import evaluating

__all__ = ["MOST_CANDIDATES", "Leakage", "identify", "measure_leakage"]

MOST_CANDIDATES = 2000
"""Of more images than these a random sample is used."""

_CHUNK = 64  # images encoded at once
_ROWS = 256  # releases compared with all candidates at once
_EXACT = 1e-6  # of the candidates' variance: what a coordinate without noise is compared to
_ROUNDING = 1e-12  # of the squares that cancel in a squared distance, in float64
_TIE, _SAME = 1e-9, 1e-6  # relative and absolute: what two squared distances may differ by and still be called equal


def identify(released: Tensor, candidates: Tensor, noise_std: float | Tensor) -> Tensor:
    r"""For each release whether the likeliest of N candidates is the right one, under Gaussian noise.

        hit_i = 1 / |T_i| if i in T_i, else 0,    T_i = argmin_j sum_c (z_ic - z_hat_jc)^2 / sigma_c^2

    Maximum likelihood, the best that any attacker can do who knows the N clean features and that each was as likely.
    Equally likely candidates share the hit: with features that are all the same it is 1 / N. The mean of the hits is
    the success to be compared with `bounds.success_at_most(1 / N, I)`. For K queries pass the mean of the K releases
    and noise_std / sqrt(K).

    Args:
        released: z (N, ...), release i coming from candidate i.
        candidates: z_hat (N, ...), the candidates' clean features.
        noise_std: sigma >= 0, of every coordinate or (D,) of each, flattened row-major. A coordinate without noise
            tells candidates apart down to 1/1000 of their standard deviation in it.

    Returns:
        (N,) hits in float64. Candidates are compared 256 releases at a time; no N x N numbers are held.

    Raises:
        FeatureError: shapes that do not match, no candidate, or NaN.
        ConfigError: a negative noise.

    >>> z_hat = torch.tensor([[0.0], [1.0], [1.0]])
    >>> print(identify(z_hat + 0.1, z_hat, 0.5).tolist())
    [1.0, 0.5, 0.5]
    """
    if released.shape != candidates.shape or released.ndim < 2 or len(released) == 0:
        raise FeatureError(
            f"released {tuple(released.shape)} and candidates {tuple(candidates.shape)} do not match; pass one release "
            "(N, ...) for each candidate, in their order"
        )
    sent, known = released.detach().flatten(1).double(), candidates.detach().flatten(1).double()
    if not bool(sent.isfinite().all() and known.isfinite().all()):
        raise FeatureError("features hold NaN or infinite values; find the step that produced them first")
    sigma = torch.as_tensor(noise_std, dtype=torch.float64, device=known.device).detach()
    if sigma.ndim > 1 or not bool((sigma >= 0).all()) or (sigma.ndim == 1 and len(sigma) != known.shape[1]):
        raise ConfigError("noise_std must be one standard deviation of at least 0, or one for each coordinate")
    centre = known.mean(0)
    spread = (known - centre).square().mean(0)
    variance = torch.where(sigma > 0, sigma.square(), _EXACT * spread)
    # Where there is neither noise nor any difference, there is nothing to be learned.
    weight = torch.where(variance > 0, variance, torch.inf).rsqrt()
    sent, known = (sent - centre) * weight, (known - centre) * weight
    lengths = known.square().sum(1)
    hits = []
    for rows in torch.arange(len(sent), device=sent.device).split(_ROWS):
        part = sent[rows]
        distances = part.square().sum(1, keepdim=True) - 2 * part @ known.T + lengths
        # Rounding of this form: candidates within it are compared once more, by their differences.
        slack = _ROUNDING * (part.square().sum(1) + lengths.max())
        close = distances <= (distances.amin(1) + slack)[:, None]
        for row, near in zip(rows.tolist(), close, strict=True):
            names = near.nonzero().squeeze(1)
            if not bool(near[row]):
                hits.append(0.0)
                continue
            again = (known[names] - sent[row]).square().sum(1)
            ties = again <= (1 + _TIE) * again.min() + _SAME
            hits.append(float(ties[names == row].sum() / ties.sum()))
    return torch.tensor(hits, dtype=torch.float64, device=sent.device)


@dataclass(frozen=True)
class Leakage:
    """What one image's features give away: measured, and at most.

    Attributes:
        identified: share of images that an attacker names rightly among `candidates` of them.
        identified_error: its standard error.
        candidates: N.
        queries: how often each image was sent, K.
        information: upper bound on I(z; z_hat) of K queries on held-out features, in nats; None where a
            direction has no noise.
        information_error: its standard error.
        identified_at_most: what no attacker exceeds in the mean over images like these, by the information and 3 of
            its standard errors (`bounds.success_at_most`); None without noise.
        clipped_at_most: what no attacker exceeds on any N images, by the norm that the device enforces
            (`bounds.clipped_success_at_most`); None where it enforces none, or adds no noise.

    >>> print(Leakage(0.61, 0.02, 359, 1, 8.0, 0.1, 0.96, None).sentence)
    Of 359 images an attacker names the right one in 61 %; no attacker can exceed 96 %.
    """

    identified: float
    identified_error: float
    candidates: int
    queries: int
    information: float | None
    information_error: float | None
    identified_at_most: float | None
    clipped_at_most: float | None

    @property
    def at_most(self) -> float:
        """The lower of the two certificates; 1 where there is none."""
        return min(1.0 if one is None else one for one in (self.identified_at_most, self.clipped_at_most))

    @property
    def holds(self) -> bool:
        """The law: no attack identifies more often, within 3 standard errors, than its certificates allow."""
        return self.identified - 3 * self.identified_error <= self.at_most

    @property
    def sentence(self) -> str:
        """Both numbers for a reader."""
        asked = "" if self.queries == 1 else f" from {self.queries} queries"
        found = f"Of {self.candidates:,} images an attacker names the right one in {_percent(self.identified)}{asked}; "
        if self.at_most < 1:
            return found + f"no attacker can exceed {_percent(self.at_most)}."
        if self.information is None:
            return found + "without noise in every direction nothing limits a better attacker."
        return found + "no certificate limits a better attacker."

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def measure_leakage(
    model: SplitModel,
    images: ImageSet,
    *,
    seed: int,
    queries: int = 1,
    most: int = MOST_CANDIDATES,
    quick: bool = False,
) -> Leakage:
    """Identification through a split model's wire, the information that crosses it, and the certificates.

    The candidates are these images; the attacker has their clean features from the encoder, which it holds. Under plain
    Gaussian noise the likeliest candidate is exact. Where the channel also quantises or drops at random, or adds
    no noise, the attacker learns from releases of its own, coordinate by coordinate, the line from feature to release
    and the variance about it, and takes the candidate that is likeliest by those: figures do not depend on the units of
    a coordinate. Measured in evaluation mode; every module has its own mode again afterwards.

    Args:
        model: the split model.
        images: candidates that the encoder did not learn from, in the mean over which certificates hold; their
            labels shape the density behind the information.
        seed: of the sample, the noise and the folds.
        queries: K, how often each image is sent with fresh noise; the attacker averages.
        most: candidates at most; of more images a random sample is taken.
        quick: as of `held_out_information`: in a tenth of the time a bound that is looser by a few per cent.

    Raises:
        ConfigError: fewer than 1 query, or fewer than 4 images.
        FeatureError: features with NaN or infinity.

    >>> import sfumato
    >>> test = sfumato.data.load("digits", None, seed=0).test
    >>> model = SplitModel(torch.nn.Flatten(), sfumato.Channel(noise_std=1.0), torch.nn.Linear(64, 10))
    >>> found = measure_leakage(model, test, seed=0, quick=True)
    >>> print(f"{found.identified:.2f} of {found.candidates}, at most {found.identified_at_most:.2f}")
    0.16 of 359, at most 0.48
    """
    if len(images) < 4 or most < 4:
        raise ConfigError(f"identification among {min(len(images), most)} images says little; give at least 4")
    if len(images) > most:
        images = images.subset(torch.randperm(len(images), generator=generator(seed, "candidates"))[:most])
    channel = model.channel
    with evaluating(model):
        z_hat, z, simulated = _encoded(model, images, seed, queries)
    noise = channel.noise.scaled(1 / math.sqrt(queries))
    if noise.rms > 0 and channel.quantize_bits is None and not channel.stochastic_transforms:
        (sent, spread), known = noise.coordinates(z), noise.coordinates(z_hat)[0]
        hits = identify(sent, known, spread)
    else:
        expected, spread = _lines(z_hat, simulated)
        hits = identify(z, expected, spread)
    count = len(hits)
    share = float(hits.mean())
    information = error = by_information = by_clip = None
    if not noise.singular:
        labels = images.labels if images.num_classes > 1 else None
        found = held_out_information(z_hat, labels, noise, seed, quick=quick)
        information, error = found.value, found.standard_error
        by_information = float(bounds.success_at_most(1 / count, found.at_most))
        if channel.clip_norm is not None:
            by_clip = float(bounds.clipped_success_at_most(1 / count, channel.clip_norm, noise))
    return Leakage(
        identified=share,
        identified_error=float(hits.std()) / math.sqrt(count),
        candidates=count,
        queries=queries,
        information=information,
        information_error=error,
        identified_at_most=by_information,
        clipped_at_most=by_clip,
    )


def _encoded(model: SplitModel, images: ImageSet, seed: int, queries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clean features, the mean of what left the device for each, and the same again as an attacker simulates it."""
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    sources = [generator(seed, "identification", part, device=device) for part in ("sent", "simulated")]
    found: list[list[Tensor]] = [[], [], []]
    for rows in torch.arange(len(images)).split(_CHUNK):
        x = images.float(rows).to(device)
        found[0].append(model.features(x).flatten(1))
        for part, source in zip(found[1:], sources, strict=True):
            part.append(encode_repeated(model, x, queries=queries, generator=source).mean(1).flatten(1))
    clean, sent, simulated = (torch.cat(part).double() for part in found)
    return clean, sent, simulated


def _lines(z_hat: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """What a release is expected to be for each feature, and its standard deviation (D,): a line per coordinate."""
    x, y = z_hat - z_hat.mean(0), z - z.mean(0)
    power = x.square().mean(0)
    slope = torch.where(power > 0, (x * y).mean(0) / power, 0.0)
    rest = (y - slope * x).square().mean(0)
    # What is left by rounding is no noise: such a coordinate is exact.
    rest = torch.where(rest > _EXACT**2 * y.square().mean(0), rest, 0.0)
    return z.mean(0) + slope * x, rest.sqrt()


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
