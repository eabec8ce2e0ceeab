"""Linear inversion in closed form, from moments or from Gram matrices: the baseline that says, within seconds, whether
a trained attack has converged; what other attacks begin with; and which activation of the cloud gives most away.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sfumato.attacks.base import Attack, AttackConfig, Fit, Job, Observer, hold_out
from sfumato.attacks.whitening import whiten
from sfumato.metrics import mse
from sfumato.seeds import generator

__all__ = [
    "STRENGTHS",
    "Linear",
    "Reading",
    "RidgeAttack",
    "RidgeConfig",
    "best_linear",
    "dual_path",
    "linear_bytes",
    "primal_path",
    "rank_activations",
]

STRENGTHS = tuple(10.0**exponent for exponent in (-24, -20, -16, -12, *range(-9, 4)))
"""Relative regularisations a. The smallest is 10^-12 of the largest singular value; below machine precision, which a
singular value decomposition in float64 reaches and a Gram matrix only by its square root, there is nothing to divide
by and the direction is left out."""
Pairs = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]

_EXACT = 2**21  # rows times features up to which the singular values themselves are computed
_WIDE = 2**26  # rows times features, or times pixels, at most where not all rows are taken
_LARGEST = 2**27  # features times pixels up to which they all are
_PROBED = 256  # size of the matrix whose decomposition tells how large a one fits until a deadline

_TRIED = 384  # images that rank activations,
_VALUES = 2**24  # values of all activations that are held at once
_LONGEST = 2**16  # values of an activation that is tried


class Linear(NamedTuple):
    """`x_hat = offset + (z - centre) left right`: centre (D,), left (D, r), right (r, d), offset (d,).

    In factors, since the product of a long feature and a large image, D x d, need not fit into memory.
    """

    centre: Tensor
    left: Tensor
    right: Tensor
    offset: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        return self.write(self.read(z))

    def read(self, z: Tensor) -> Tensor:
        """(n, ...) -> (n, r), the same for all regularisations of a path."""
        return (z.flatten(1).to(self.left.dtype) - self.centre) @ self.left

    def write(self, rows: Tensor) -> Tensor:
        """(n, r) -> (n, d)."""
        return torch.addmm(self.offset, rows.to(self.right.dtype), self.right).float()


class BestLinear(NamedTuple):
    """The chosen map, its error on the judging images, its relative regularisation, how many images it learned from."""

    linear: Linear
    error: float
    strength: float
    images: int


def best_linear(
    observer: Observer,
    learn: Tensor,
    judge: Tensor,
    *,
    draws: int = 4,
    size: int = 4096,
    seed: int = 0,
    pairs: Pairs | None = None,
    deadline: float | None = None,
) -> BestLinear:
    """The linear attack that learns from `draws` releases of each image at `learn`, with the regularisation that has
    the smallest error on the images at `judge`, clipped to [0, 1].

    Rows are left out where there are more than `size` of them and more features than that, and where a deadline
    (`time.monotonic()`) leaves no time for all. `pairs` gives images and what left the device for them; None takes
    `observer.pairs`.
    """
    pairs = pairs or observer.pairs
    noise = generator(seed, "ridge", device=observer.device)
    dimension, pixels = math.prod(observer.feature_shape), math.prod(observer.image_shape)
    count = _affordable(dimension, pixels, len(learn), size)
    if observer.repeats:
        draws = 1  # each would be the same
    elif count < len(learn) or dimension > size:
        draws = max(1, min(draws, size // count, _WIDE // (dimension * count)))
    if deadline is not None:
        most = _decomposed_until(deadline)
        if min(dimension, draws * count) > most:
            draws, count = 1, max(1, min(count, most))
    used = 0

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal used
        began = time.monotonic()
        for number in range(draws):
            for part in observer.parts(learn[:count]):
                # The decomposition and the choice need the other half of the time.
                if used and deadline is not None and time.monotonic() > (began + deadline) / 2:
                    return
                x, z = pairs(part, noise)
                used += len(part) if number == 0 else 0
                yield z.flatten(1), x.flatten(1)

    # Moments cost D x D numbers, inner products n x n: whichever are fewer.
    if max(dimension * dimension, _EXACT) < dimension * draws * count:
        path = primal_path(batches(), STRENGTHS, observer.patiently)
    else:
        z, x = (torch.cat(part) for part in zip(*batches(), strict=True))
        path = dual_path(z, x, STRENGTHS, observer.patiently)
    judging = generator(seed, "judge", device=observer.device)
    shown = [observer.pairs(part, judging) for part in observer.parts(judge)]
    read: list[Tensor] = []
    best: BestLinear | None = None
    for strength, candidate in zip(STRENGTHS, path, strict=True):
        error = 0.0
        for number, (x, z) in enumerate(shown):
            observer.ask()
            if number == len(read):  # the same for all regularisations
                read.append(candidate.read(z))
            x_hat = candidate.write(read[number]).clamp(0, 1).reshape(x.shape)
            error += float(mse(x, x_hat).double().sum()) / len(judge)
        if best is None or error < best.error:
            best = BestLinear(candidate, error, strength, used)
        if deadline is not None and time.monotonic() > deadline:
            break
    assert best is not None
    return best


def _affordable(dimension: int, pixels: int, count: int, size: int) -> int:
    """Of `count` images how many the linear attack learns from: a part where features or images are long."""
    if dimension <= size and dimension * pixels <= _LARGEST:
        return count
    return min(count, size, max(2, _WIDE // max(dimension, pixels)))


def _decomposed_until(deadline: float) -> int:
    """The size of a matrix whose decomposition takes a quarter of the time that is left."""
    probe = torch.rand(_PROBED, _PROBED, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    began = time.monotonic()
    torch.linalg.eigh(probe + probe.T)
    now = time.monotonic()
    # Time grows with the third power of the size.
    return round(_PROBED * max(0.05, (deadline - now) / (4 * max(1e-4, now - began))) ** (1 / 3))


def linear_bytes(dimension: int, pixels: int, count: int, draws: int, size: int) -> float:
    """What `best_linear` takes at its peak, within a factor of about 2: moments of the features, or inner products of
    the rows where those are fewer.

    >>> linear_bytes(64, 64, 1000, 4, 4096)
    262144.0
    """
    large = dimension > size or dimension * pixels > _LARGEST
    rows = _affordable(dimension, pixels, count, size) if large else count * draws
    if dimension <= rows:
        return 8.0 * (5 * dimension**2 + 3 * dimension * pixels)
    return 8.0 * (5 * rows**2 + 4 * rows * (dimension + pixels))


def part_of(count: int, observer: Observer) -> str:
    """`, from 4,096 of the attacker's 45,000 images` where it is not all of them."""
    whole = len(observer)
    return f", from {count:,} of the attacker's {whole:,} images" if count < whole else ""


def _call(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return function(*args, **options)


@torch.no_grad()
def primal_path(
    batches: Iterable[tuple[Tensor, Tensor]], strengths: Sequence[float], run: Callable[..., Any] = _call
) -> Iterator[Linear]:
    """Ridge regression with an unpenalised intercept from batches of rows (z, x), (n, D) and (n, d).

    Only moments are kept, D x D and D x d. The penalty of strength a is `a trace(Z^T Z) / D |W|^2` with Z centred, so
    that a has no unit; in the language of scikit-learn `Ridge(alpha=a * trace(Z^T Z) / D)`. `run(function, *args)`
    calls what takes long.
    """
    count = 0
    for z, x in batches:
        z, x = z.double(), x.double()
        if count == 0:
            origin_z, origin_x = z.mean(0), x.mean(0)  # near the means, so that little cancels below
            gram, cross = z.new_zeros(z.shape[1], z.shape[1]), z.new_zeros(z.shape[1], x.shape[1])
            sum_z, sum_x = torch.zeros_like(origin_z), torch.zeros_like(origin_x)
        z, x = z - origin_z, x - origin_x
        gram.addmm_(z.T, z)
        cross.addmm_(z.T, x)
        sum_z, sum_x, count = sum_z + z.sum(0), sum_x + x.sum(0), count + len(z)
    gram -= torch.outer(sum_z, sum_z / count)
    cross -= torch.outer(sum_z, sum_x / count)
    values, vectors = run(torch.linalg.eigh, gram)
    mean_z, mean_x = origin_z + sum_z / count, origin_x + sum_x / count
    yield from _solve(values, values, vectors, run(torch.mm, vectors.T, cross), mean_z, mean_x, strengths)


@torch.no_grad()
def dual_path(z: Tensor, x: Tensor, strengths: Sequence[float], run: Callable[..., Any] = _call) -> Iterator[Linear]:
    """`primal_path` for rows (n, D) in memory: through their singular values Z = U S V^T, or, where there are many, the
    n x n Gram matrix, whose eigenvectors give `Z^T U`. Never a D x D or a D x d matrix.
    """
    exact = z.numel() <= _EXACT
    z, x = z.double() if exact else z, x.double()
    mean_z, mean_x = z.mean(0), x.mean(0)
    z, x = z - mean_z, x - mean_x
    if exact:
        left, singular, right = run(torch.linalg.svd, z, full_matrices=False)
        cross = singular[:, None] * (left.T @ x)
        yield from _solve(singular.square(), singular, right.T, cross, mean_z, mean_x, strengths)
        return
    gram = z.new_zeros(len(z), len(z), dtype=torch.float64)
    for part in z.split(2**12, dim=1):
        wide = part.double()
        run(gram.addmm_, wide, wide.T)
    values, vectors = run(torch.linalg.eigh, gram)
    for one in _solve(values, values, z.T, vectors.T @ x, mean_z, mean_x, strengths):
        yield one._replace(right=run(torch.mm, vectors, one.right))


def _solve(
    values: Tensor, precise: Tensor, left: Tensor, cross: Tensor, mean_z: Tensor, mean_x: Tensor,
    strengths: Sequence[float],
) -> Iterator[Linear]:  # fmt: skip
    """W = left (values + a scale)^-1 cross, without what lies below machine precision in `precise`."""
    there = precise > max(precise.shape[0], len(mean_z)) * torch.finfo(precise.dtype).eps * precise.max()
    # A Gram matrix of rows and one of columns have the same trace, so that a means the same in both forms.
    scale = float(values.clamp_min(0).sum() / len(mean_z))
    for strength in strengths:
        inverse = torch.where(there, 1.0 / (values + strength * scale), 0.0)
        yield Linear(mean_z, left, inverse[:, None] * cross, mean_x)


@dataclass(frozen=True, kw_only=True)
class RidgeConfig(AttackConfig):
    """Settings of the linear attack.

    Attributes:
        draws: Releases of every image to learn from. The noise is then in the moments and not in the
            coefficients.
        size: Largest system of equations. With more features and more rows than this, rows are left out.

    >>> RidgeConfig(draws=2).size
    4096
    """

    draws: int = 4
    size: int = 4096


class RidgeAttack(Attack):
    """Ridge regression from what leaves the device to the pixels.

        x_hat = m_x + (z - m_z) W,    W = (Z^T Z + a s I)^-1 Z^T X,    s = trace(Z^T Z) / D

    with the rows of Z (whitened) and X centred at their means m and a the relative regularisation with the smallest
    error on held-out images, down to machine precision. Solved in float64 through singular values, or, with many rows,
    through an eigendecomposition, D x D or n x n. Values outside [0, 1] are clipped. It is the best attack of all where
    feature and image are jointly Gaussian, and its error is an upper bound on what any converged attack should reach.

    >>> import sfumato
    >>> digits = sfumato.data.load("digits", None, seed=0).train
    >>> model = sfumato.SplitModel(torch.nn.Flatten(), sfumato.Channel(noise_std=0.1), torch.nn.Linear(64, 10))
    >>> print(f"{RidgeAttack().fit(Observer(model, digits)).outcome.held_out_mse:.4f}")  # the mean image leaves 0.0740
    0.0047
    """

    name: ClassVar[str] = "ridge"
    settings: ClassVar[type[Any]] = RidgeConfig
    linear: Linear

    def learn(self, observer: Observer, job: Job) -> None:
        """Solve; there is no state to resume from."""
        cfg: RidgeConfig = self.config
        judge, learn = hold_out(len(observer), cfg.hold_out, cfg.seed)
        best = best_linear(
            observer, learn, judge, draws=cfg.draws, size=cfg.size, seed=cfg.seed, deadline=self.until(1.0)
        )
        self.linear, self._shape = best.linear, observer.image_shape
        reason = f"closed form, regularisation {best.strength:g} chosen on {len(judge)} images"
        self.outcome = Fit(True, reason + part_of(len(judge) + best.images, observer), best.error)
        job.tell(1, 1, mse=best.error, held_out_mse=best.error)

    def answer(self, seen: Tensor) -> Tensor:
        """(N, ...) -> (N, C, H, W) in [0, 1]."""
        return self.linear(seen).clamp(0, 1).reshape(len(seen), *self._shape)

    def tensors(self) -> dict[str, Tensor]:
        """The factors of the linear map."""
        return self.linear._asdict()


class Reading(NamedTuple):
    """How much of an image a linear attack reads from one activation of the cloud.

    Attributes:
        name: of the activation, for `Observer.inside`.
        dimension: of it.
        mse: on held-out images, from few images to learn from: a rank, and no figure for a report.

    >>> Reading("0 0 addmm", 4, 0.02).mse
    0.02
    """

    name: str
    dimension: int
    mse: float


def rank_activations(observer: Observer) -> list[Reading]:
    """Every activation of the cloud by what it gives away, the one that gives most first, in one pass over few images.

    A cloud that undoes a scrambling computes the image on the way. Attack the first few in full, and all together:
    `RidgeAttack().fit(observer.inside(name))`.

    >>> from torch import nn
    >>> from sfumato import Channel, SplitModel
    >>> from sfumato.data import ImageSet
    >>> pixels = torch.randint(0, 256, (200, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    >>> model = SplitModel(nn.Flatten(), Channel(), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)))
    >>> seen = Observer(model, ImageSet(pixels, torch.zeros(200, dtype=torch.long), ("any",)))
    >>> print(*(reading.dimension for reading in rank_activations(seen)))
    4 1
    """
    count = min(len(observer), _TRIED)
    judge, learn = hold_out(count, 0.25, 0)
    x = observer.pixels(torch.arange(count)).flatten(1)
    known = [one for one in observer.activations() if one.dimension <= _LONGEST]
    found = []
    while known:
        names: list[str] = []
        room = _VALUES
        while known and (not names or known[0].dimension * count <= room):
            room -= known[0].dimension * count
            names.append(known.pop(0).name)
        batches = [observer.activated(part, names) for part in torch.arange(count).split(32)]
        for name in names:
            rows = torch.cat([batch.pop(name) for batch in batches])
            rows = whiten(rows, None, None)(rows)
            paths = dual_path(rows[learn], x[learn], STRENGTHS)
            errors = [float((one(rows[judge]).clamp(0, 1) - x[judge]).square().mean()) for one in paths]
            found.append(Reading(name, rows.shape[1], min(errors)))
    return sorted(found, key=lambda one: one.mse)
