"""k-means: greedy k-means++ starts, Lloyd's iterations, and the nearest-centre rule, all in chunked matrix products."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.errors import ConfigError, FeatureError
from sfumato.mixture._inputs import (
    check_features,
    check_finite,
    check_positive,
    chunk_slices,
    random_unit,
    seeded,
)

# Lloyd stops when the centres moved, squared and summed, by less than this share of the mean variance.
TOLERANCE = 1e-4
_WIDTH = 16


class KMeansResult(NamedTuple):
    """What `kmeans` found.

    Attributes:
        centres: (k, D).
        assignment: (n,) int64, `nearest(features, centres)`.
        inertia: sum of the squared distances to the assigned centres.
        iterations: updates of the centres that were made.
    """

    centres: Tensor
    assignment: Tensor
    inertia: float
    iterations: int


class _Scores:
    """`1/2 |c|^2 - x . c` for rows x (n, D), (n, k): half the squared distance, less 1/2 |x|^2.

    Filled up to a multiple of 16 centres, the last ones infinitely far: kernels for matrix products are made for such
    widths (one thread of an AVX2 machine, D = 512: 3 centres take 5.1 ms for 5,000 rows, 16 take 1.5).
    """

    def __init__(self, centres: Tensor) -> None:
        k, dim = centres.shape
        wide = -(-k // _WIDTH) * _WIDTH if centres.device.type == "cpu" else k
        self._half = centres.new_full((wide,), torch.inf)
        self._half[:k] = 0.5 * centres.square().sum(1)
        self._columns = centres.new_zeros(dim, wide)
        self._columns[:, :k] = centres.T

    def __call__(self, rows: Tensor) -> Tensor:
        return torch.addmm(self._half, rows, self._columns, alpha=-1.0)


def scores(features: Tensor, centres: Tensor) -> Tensor:
    """Half the squared distances of features to centres, less what all centres share, (n, k)."""
    shift = centres.mean(0)
    return _Scores(centres - shift)(features - shift)[:, : len(centres)]


@torch.no_grad()
def nearest(features: Tensor, centres: Tensor) -> Tensor:
    """The index of the nearest centre of each sample, (n,) int64; of equally near ones the first.

    Distances are `|x|^2 - 2 x.c + |c|^2` around the mean of the centres, one matrix product per chunk.

    Args:
        features: (n, D).
        centres: (k, D).

    Raises:
        FeatureError: features of another shape or dtype than (n, D) float32 or float64.
    """
    check_features(features, centres.shape[1])
    shift = centres.mean(0)
    score = _Scores(centres - shift)
    assignment = torch.empty(len(features), dtype=torch.int64, device=features.device)
    for part in chunk_slices(features, cached=True):
        torch.argmin(score(features[part] - shift), 1, out=assignment[part])
    return assignment


@torch.no_grad()
def kmeans_plus_plus(features: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
    """k samples as first centres, far apart: greedy k-means++ (Arthur and Vassilvitskii 2007).

    Each next centre is drawn with probability proportional to the squared distance to the centres so far; of
    2 + log k such candidates the one that lowers the sum of squared distances most is kept. When all samples
    coincide with a centre already (fewer than k distinct samples), the rest are random repetitions.

    Args:
        features: (n, D) with n >= 1.
        k: number of centres.
        generator: source of randomness; a new one with seed 0 when left out.

    Returns:
        (k, D), rows of `features`.

    Raises:
        ConfigError: k below 1.
        FeatureError: features of a wrong shape or dtype, without samples, or not finite.
    """
    check_positive(k=k)
    check_features(features)
    check_finite(features)
    source = seeded(generator)
    shift = features.mean(0)  # around which the squares below cancel least
    norms = features.new_empty(len(features))
    for part in chunk_slices(features):
        norms[part] = (features[part] - shift).square_().sum(1)

    def distances(candidates: Tensor) -> Tensor:
        """(n, t) squared distances of all samples to the candidate samples (t,)."""
        moved = features[candidates] - shift
        squared = norms[:, None] + norms[candidates]
        for part in chunk_slices(features):
            squared[part].addmm_(features[part] - shift, moved.T, alpha=-2.0)
        return squared.clamp_(min=0)

    trials = 2 + int(math.log(k))
    picks = (random_unit(1, source, features) * len(features)).long()
    closest = distances(picks).squeeze(1)
    for _ in range(k - 1):
        drawn = random_unit(trials, source, features)
        mass = closest.cumsum(0, dtype=torch.float64)  # in float32 the last of many samples would add nothing
        if float(mass[-1]) == 0.0:
            picks = torch.cat([picks, (drawn[:1] * len(features)).long()])
            continue
        candidates = torch.searchsorted(mass, drawn * mass[-1], right=True).clamp_(max=len(features) - 1)
        lowered = torch.minimum(distances(candidates), closest[:, None])
        best = lowered.sum(0, dtype=torch.float64).argmin()
        closest = lowered[:, best]
        picks = torch.cat([picks, candidates[best].reshape(1)])
    return features[picks]


@torch.no_grad()
def kmeans(
    features: Tensor,
    k: int,
    *,
    init: Tensor | None = None,
    iterations: int = 100,
    generator: torch.Generator | None = None,
) -> KMeansResult:
    """Lloyd's algorithm: assign to the nearest centre, move each centre to the mean of its samples, repeat.

    Stops early when no sample changes its cluster or the centres hardly move (squared and summed, by less than
    1e-4 of the mean variance of the features). A cluster that runs empty is restarted at the sample farthest from
    its centre. With fewer than k distinct samples the surplus clusters stay empty; that is no error.

    Args:
        features: (n, D) with n >= 1.
        k: number of clusters.
        init: (k, D) centres to start from; `kmeans_plus_plus` when left out.
        iterations: at most so many updates; 0 assigns to the first centres.
        generator: source of randomness for the start; a new one with seed 0 when left out.

    Raises:
        ConfigError: k below 1, a negative number of iterations, or `init` of another shape.
        FeatureError: features of a wrong shape or dtype, without samples, or not finite.
    """
    check_positive(k=k)
    check_features(features)
    check_finite(features)
    if iterations < 0:
        raise ConfigError(f"iterations is {iterations}; give 0 or more")
    if init is not None and init.shape != (k, features.shape[1]):
        raise ConfigError(f"init has shape {tuple(init.shape)}; pass centres of shape ({k}, {features.shape[1]})")
    if init is not None and not bool(torch.isfinite(init).all()):
        raise FeatureError("init holds NaN or infinite centres; start without init")
    start = kmeans_plus_plus(features, k, generator) if init is None else init
    shift = features.mean(0)
    rows = features - shift  # once for all passes: around the mean, float32 loses least in |x|^2 - 2 x.c + |c|^2
    centres = start.detach().to(features)
    enough = -1.0
    assignment: Tensor | None = None
    updates = 0
    while updates < iterations:
        chosen, counts, sums, squares = _pass(rows, centres - shift, measured=assignment is None)
        if assignment is None:
            enough = TOLERANCE * squares / features.numel()
        elif torch.equal(assignment, chosen):
            break
        assignment = chosen
        if bool((counts == 0).any()):
            counts, sums = _refilled(rows, centres - shift, shift, chosen, counts, sums)
        means = (sums / counts.clamp(min=1)[:, None] + shift).to(centres)
        moved = torch.where((counts > 0)[:, None], means, centres)
        distance = float((moved - centres).double().square().sum())
        centres = moved
        updates += 1
        if distance <= enough:
            break
    assignment = nearest(features, centres)
    inertia = float(_distances(features, centres, assignment).sum(dtype=torch.float64))
    return KMeansResult(centres, assignment, inertia, updates)


def _pass(rows: Tensor, centres: Tensor, *, measured: bool) -> tuple[Tensor, Tensor, Tensor, float]:
    """Nearest centres, counts (k,), and the float64 sums (k, D) and, if `measured`, of squares of centred rows."""
    k, dim = centres.shape
    assignment = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    total = rows.new_zeros(k, dim, dtype=torch.float64)
    score, squares = _Scores(centres), 0.0
    for part in chunk_slices(rows, cached=True):
        chunk = rows[part]
        chosen = score(chunk).argmin(1)
        assignment[part] = chosen
        if measured:
            squares += float(chunk.square().sum(dtype=torch.float64))
        if chunk.device.type == "cpu":  # sums of a chunk in float32, of chunks in float64
            total += chunk.new_zeros(k, dim).index_add_(0, chosen, chunk)
        else:  # where index_add_ is as random as the order of its additions
            total += torch.nn.functional.one_hot(chosen, k).to(chunk.dtype).T @ chunk
    return assignment, torch.bincount(assignment, minlength=k), total, squares


def _distances(features: Tensor, centres: Tensor, assignment: Tensor) -> Tensor:
    """(n,) squared distance of each row to its centre."""
    result = features.new_empty(len(features))
    for part in chunk_slices(features, cached=True):
        result[part] = (features[part] - centres[assignment[part]]).square_().sum(1)
    return result


def _refilled(
    rows: Tensor, centres: Tensor, shift: Tensor, assignment: Tensor, counts: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor]:
    """Counts and sums after each empty cluster got the sample farthest from its centre, which leaves its cluster."""
    counts, sums = counts.clone(), sums.clone()
    empty = (counts == 0).nonzero().squeeze(1)
    distance = _distances(rows, centres, assignment)
    eps = torch.finfo(rows.dtype).eps
    noise = 16 * eps * (centres.square().sum(1).max() + eps * shift.square().sum())
    # A sample on its centre, or alone in its cluster, would only swap one empty cluster for another.
    movable = (distance > noise) & (counts[assignment] > 1)
    far = torch.where(movable, distance, -1.0).topk(min(len(empty), len(rows))).indices
    far = far[movable[far]]
    taken, donors = rows[far].double(), assignment[far]
    empty = empty[: len(donors)]
    sums.index_add_(0, donors, -taken)
    counts.index_add_(0, donors, -torch.ones_like(donors))
    sums[empty], counts[empty] = taken, torch.ones_like(empty)
    return counts, sums
