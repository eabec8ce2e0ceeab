"""Which tokens of a text were sent: what every attacker reaches who can run the encoder on texts of its own."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.errors import ConfigError, FeatureError
from sfumato.seeds import generator
from sfumato.split import SplitModel
from sfumato.torch_utils import evaluating

__all__ = ["TokenRecovery", "token_recovery"]

_TEXTS = 64  # encoded at once
_ROWS = 1024  # positions compared with the whole vocabulary at once
_SWEEPS = 20  # of the fit of tokens and positions in turn
_PER_DIMENSION = 4  # positions for each dimension from which a full covariance is used, as in `whitening`
_FAINTEST = 1e-9  # of the features' variance: what a direction without spread within a token is given


@dataclass(frozen=True)
class TokenRecovery:
    """How many tokens an attacker reads from what left the device.

    Attributes:
        recovered: share of the positions whose token is named correctly.
        standard_error: of that, over texts.
        chance: share that naming the commonest token of the attacker's texts gets.
        by_position: (L,) the share at each position; NaN where there is only padding.
        by_text: (m,) the share of each text; 0 where there is only padding.

    >>> print(TokenRecovery(0.5, 0.01, 0.1, torch.ones(2), torch.ones(3)))
    tokens recovered: 50.0% ± 1.0% (chance 10.0%)
    """

    recovered: float
    standard_error: float
    chance: float
    by_position: Tensor
    by_text: Tensor

    def __str__(self) -> str:
        return f"tokens recovered: {self.recovered:.1%} ± {self.standard_error:.1%} (chance {self.chance:.1%})"


@torch.no_grad()
def token_recovery(
    model: SplitModel,
    own: Tensor,
    targets: Tensor,
    *,
    padding: int | None = None,
    shared: Callable[[Tensor], Mapping[str, Tensor]] | None = None,
    seed: int = 0,
) -> TokenRecovery:
    r"""Recover the tokens of texts from what left the device, position by position.

        z_ip = c_{v(i,p)} + d_p + e_ip,    e ~ N(0, W)
        v_hat = argmax_v  log n_v - D/2 log(1 + 1/n_v) - 1/2 (z - d_p - c_v)^T W^-1 (z - d_p - c_v) / (1 + 1/n_v)

    The centre c_v of every token and the offset d_p of every position are fitted by least squares to the attacker's own
    texts, which it encodes and releases as the device does; W is the covariance of what they leave over, context and
    noise together, and whitens the distance. A direction without spread keeps 1e-9 of the feature's variance. The
    denominators account for centres that were estimated from n_v tokens. Where nothing but an embedding is looked up,
    this is the best that any attacker can do (up to the estimates); behind attention it is a lower bound on what one
    with a trained network reaches: a small share proves nothing, a large one that the text is readable.

    Args:
        model: the split model; its feature has the shape (N, L, ...), one row for each position.
        own: (n, L) int64, texts of the attacker. A token that is not in them is never named.
        targets: (m, L) int64, other texts, whose tokens are to be recovered.
        padding: a token that is neither learned nor counted.
        shared: ids -> what both halves get by name, such as `lambda ids: {"attention_mask": (ids != 0).long()}`.
        seed: of the noise.

    Returns:
        The share of recovered tokens. Source: nearest-neighbour search in embeddings, C. Song and A. Raghunathan,
        "Information Leakage in Embedding Models", CCS 2020, whitened as in linear discriminant analysis.

    Raises:
        ConfigError: texts that are no tables of tokens of one length.
        FeatureError: a feature without one row for each position, or NaN.

    >>> import sfumato
    >>> edge = torch.nn.Embedding.from_pretrained(torch.eye(4))
    >>> model = sfumato.SplitModel(edge, sfumato.Channel(), torch.nn.Flatten())
    >>> ids = torch.randint(4, (60, 5), generator=torch.Generator().manual_seed(0))
    >>> token_recovery(model, ids[:40], ids[40:]).recovered
    1.0
    """
    for name, ids in (("own", own), ("targets", targets)):
        if ids.ndim != 2 or ids.dtype not in (torch.int32, torch.int64) or ids.numel() == 0 or int(ids.min()) < 0:
            raise ConfigError(
                f"{name} is {ids.dtype} of shape {tuple(ids.shape)}; give tokens as whole numbers (N, L) from 0 on"
            )
    if own.shape[1] != targets.shape[1]:
        raise ConfigError(
            f"own texts have {own.shape[1]} tokens and targets {targets.shape[1]}; pad or cut them to one length"
        )
    learned = _released(model, own, shared, generator(seed, "tokens", "own"))
    sent = _released(model, targets, shared, generator(seed, "tokens", "targets"))
    kept = torch.ones_like(own, dtype=torch.bool) if padding is None else own != padding
    if not bool(kept.any()):
        raise ConfigError("the attacker's texts hold nothing but padding; give texts with tokens")
    places = torch.arange(own.shape[1]).expand_as(own)
    reader = _Reader(learned[kept], own[kept], places[kept], own.shape[1])
    named = torch.stack([reader.name(sent[:, place], place) for place in range(targets.shape[1])], dim=1)
    counted = torch.ones_like(targets, dtype=torch.bool) if padding is None else targets != padding
    if not bool(counted.any()):
        raise ConfigError("the targets hold nothing but padding; give texts with tokens")
    hits = (named == targets) & counted
    share = float(hits.sum() / counted.sum())
    surprise = (hits.sum(1) - share * counted.sum(1)).double()  # of each text, for the error of a ratio
    error = math.sqrt(float(surprise.square().sum())) / float(counted.sum())
    chance = float(((targets == reader.commonest) & counted).sum() / counted.sum())
    by_text = hits.sum(1) / counted.sum(1).clamp_min(1)
    return TokenRecovery(share, error, chance, hits.sum(0) / counted.sum(0), by_text)


def _released(
    model: SplitModel, ids: Tensor, shared: Callable[[Tensor], Mapping[str, Tensor]] | None, noise: torch.Generator
) -> Tensor:
    """(N, L, D) float64 of what leaves the device."""
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    found = []
    with evaluating(model):
        for part in ids.split(_TEXTS):
            named = {name: value.to(device) for name, value in (shared(part) if shared else {}).items()}
            found.append(model.encode(part.to(device), noise, **named).cpu().double())
    z = torch.cat(found)
    if z.ndim < 3 or z.shape[1] != ids.shape[1]:
        raise FeatureError(
            f"the feature of {ids.shape[1]} tokens has the shape {tuple(z.shape[1:])}, without a row for each of them; "
            "cut the model where it still has one, before anything is pooled"
        )
    if not bool(z.isfinite().all()):
        raise FeatureError("what left the device is NaN or infinite; look for the layer of the encoder that gives it")
    return z.flatten(2)


class _Reader:
    """The fitted centres, offsets and covariance."""

    def __init__(self, z: Tensor, tokens: Tensor, places: Tensor, length: int) -> None:
        self._known, token = tokens.unique(return_inverse=True)
        counts = token.bincount().double()
        self.commonest = int(self._known[counts.argmax()])
        self._offsets = torch.zeros(length, z.shape[1], dtype=torch.float64)
        for _ in range(_SWEEPS):
            self._centres = _means(z - self._offsets[places], token, len(self._known))
            self._offsets = _means(z - self._centres[token], places, length)
        rest = z - self._centres[token] - self._offsets[places]
        free = max(1, len(z) - len(self._known) - length + 1)
        floor = _FAINTEST * float(z.var(0, unbiased=False).mean()) + torch.finfo(torch.float64).tiny
        if free < _PER_DIMENSION * z.shape[1]:
            self._white = torch.diag((rest.square().sum(0) / free).clamp_min(floor).rsqrt())
        else:
            values, axes = torch.linalg.eigh(rest.T @ rest / free)
            self._white = axes * values.clamp_min(floor).rsqrt()
        spread = 1 + 1 / counts
        self._spread, self._prior = spread, counts.log() - z.shape[1] / 2 * spread.log()

    def name(self, z: Tensor, place: int) -> Tensor:
        """The likeliest token of each row."""
        centres, found = self._centres @ self._white, []
        for part in ((z - self._offsets[place]) @ self._white).split(_ROWS):
            scores = self._prior - torch.cdist(part, centres).square() / (2 * self._spread)
            found.append(self._known[scores.argmax(1)])
        return torch.cat(found)


def _means(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """The mean of each group, 0 where it is empty."""
    sums = torch.zeros(groups, values.shape[1], dtype=values.dtype).index_add_(0, group, values)
    return sums / group.bincount(minlength=groups).clamp_min(1)[:, None]
