"""The attacks by name, so that callers know none of them, and the suite that they make: beside every attack the ones in
closed form, which take seconds, and which of all is the strongest.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sfumato.attacks.base import Attack, AttackConfig, judge_outcome
from sfumato.attacks.cloud_only import CloudOnlyAttack, CloudOnlyConfig
from sfumato.attacks.decoder import DecoderAttack, DecoderConfig, StrongAttack, StrongConfig
from sfumato.attacks.gan import GanAttack, GanConfig
from sfumato.attacks.linear import RidgeAttack, RidgeConfig
from sfumato.attacks.nearest import NearestAttack, NearestConfig
from sfumato.attacks.optimization import OptimizationAttack, OptimizationConfig
from sfumato.attacks.posterior import PosteriorAttack, PosteriorConfig
from sfumato.errors import ConfigError

__all__ = [
    "ATTACKS",
    "CLOSED_FORM",
    "NOT_JUDGED",
    "Convergence",
    "Entry",
    "build",
    "config_from_dict",
    "figures_of",
    "judged",
    "name_of",
    "strongest",
    "suite_verdict",
    "with_closed_forms",
]


class Entry(NamedTuple):
    """An attack and the class of its settings."""

    attack: type[Attack]
    config: type[Any]


ATTACKS: dict[str, Entry] = {
    "decoder": Entry(DecoderAttack, DecoderConfig),
    "gan": Entry(GanAttack, GanConfig),
    "ridge": Entry(RidgeAttack, RidgeConfig),
    "nearest": Entry(NearestAttack, NearestConfig),
    "strong": Entry(StrongAttack, StrongConfig),
    "optimization": Entry(OptimizationAttack, OptimizationConfig),
    "posterior": Entry(PosteriorAttack, PosteriorConfig),
    "cloud-only": Entry(CloudOnlyAttack, CloudOnlyConfig),
}


def name_of(config: AttackConfig) -> str:
    """The name of the attack that these settings belong to.

    Raises:
        ConfigError: they belong to none.

    >>> name_of(RidgeConfig())
    'ridge'
    """
    for name, entry in ATTACKS.items():
        if type(config) is entry.config:
            return name
    known = ", ".join(entry.config.__name__ for entry in ATTACKS.values())
    raise ConfigError(f"{type(config).__name__} holds the settings of no attack; give one of {known}")


def build(config: AttackConfig) -> Any:
    """The attack with these settings, not fitted yet.

    Raises:
        ConfigError: they belong to no attack.

    >>> build(NearestConfig(draws=2)).config.draws
    2
    """
    return ATTACKS[name_of(config)].attack(config)


def config_from_dict(name: str, values: dict[str, Any]) -> Any:
    """The settings of the attack called `name`; what `values` leaves out takes the attack's default.

    Raises:
        ConfigError: the attack or a setting is unknown; the text lists the known ones.

    >>> config_from_dict("ridge", {"draws": 2}).draws
    2
    """
    if name not in ATTACKS:
        raise ConfigError(f"unknown attack {name!r}; choose one of {', '.join(ATTACKS)}")
    cls = ATTACKS[name].config
    known = tuple(cls.__dataclass_fields__)
    for setting in values:
        if setting not in known:
            raise ConfigError(f"the {name} attack has no setting {setting!r}; its settings are {', '.join(known)}")
    return cls(**values)


CLOSED_FORM = ("ridge", "nearest")
"""Attacks without a training of their own; no figure of a trained attack is shown without them."""


def with_closed_forms(*configs: AttackConfig, seed: int = 0) -> tuple[AttackConfig, ...]:
    """The settings of a suite: those given, then the attacks in closed form that are not among them.

    >>> print(*(type(one).__name__ for one in with_closed_forms(DecoderConfig(), RidgeConfig(draws=2))))
    DecoderConfig RidgeConfig NearestConfig
    """
    given = {name_of(config) for config in configs}
    return (*configs, *(one for one in (RidgeConfig(seed=seed), NearestConfig(seed=seed)) if name_of(one) not in given))


def strongest(errors: Mapping[str, float]) -> str:
    """The attack with the smallest mean squared error on unseen images, which is the figure of the whole suite; never
    one that makes do with less than the paper's attacker has (`Attack.weaker`), unless there is no other.

    >>> strongest({"decoder": 0.031, "ridge": 0.034, "nearest": 0.028})
    'nearest'
    """
    return min(errors, key=lambda name: (_is_weaker(name), errors[name]))


def _is_weaker(name: str) -> bool:
    return name in ATTACKS and ATTACKS[name].attack.weaker


def figures_of(
    outcome: Mapping[str, Any], history: Sequence[Mapping[str, float]], **parts: Mapping[str, float]
) -> dict[str, Any]:
    """What a result keeps of one attack, so that `judged` can judge its convergence whenever it is shown.

    Args:
        outcome: the attack's `Fit`, as a dictionary.
        history: its lines, one per epoch.
        parts: `mse` and other figures by the images they were measured on; `test` is among them.

    >>> figures_of({"converged": True, "reason": "", "trivial_mse": 0.07}, [{"held_out_mse": 0.03}], test={"mse": 0.04})
    {'test': {'mse': 0.04}, 'converged': True, 'reason': '', 'history': [0.03], 'trivial_mse': 0.07}
    """
    return {
        **parts,
        "converged": outcome["converged"],
        "reason": outcome["reason"],
        "history": [line["held_out_mse"] for line in history],
        "trivial_mse": outcome.get("trivial_mse"),
    }


NOT_JUDGED = "convergence not judged (older rule)"
"""What is said of a stored attack that kept no history of its training."""


class Convergence(NamedTuple):
    """Whether an attack had come to rest; `converged` is None where nothing was stored to judge by.

    >>> Convergence(None, NOT_JUDGED).reason
    'convergence not judged (older rule)'
    """

    converged: bool | None
    reason: str


_WORSE = 0.05  # than an attack in closed form: a trained one that is left behind by more has not learned what there is


def judged(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Convergence]:
    """Today's verdict on the stored figures of a suite, by name, whenever its attacks ran.

    A trained attack has not converged if its history says so, or if an attack in closed form, which takes seconds,
    leaves it behind by more than 5 % on the same unseen images, unless it knows less (`Attack.weaker`).

    Args:
        figures: per attack `test` with its `mse`, `converged` and `reason` of the day, and, unless the result is older
            than that, `history` (held-out error per epoch; empty where nothing trains in epochs) and `trivial_mse`.
            `attack` says which it is, where the name does not.

    >>> flat = {"test": {"mse": 0.03}, "history": [0.08] + 15 * [0.03], "trivial_mse": 0.07}
    >>> nearest = {"converged": True, "reason": ""} | {"test": {"mse": 0.02}, "history": []}
    >>> judged({"decoder": flat, "nearest": nearest})["decoder"].reason
    'its error is 1.50 times that of the nearest baseline, which takes seconds'
    >>> judged({"decoder": {"test": {"mse": 0.03}, "converged": True, "reason": ""}})["decoder"]
    Convergence(converged=None, reason='convergence not judged (older rule)')
    """
    kinds = {name: one.get("attack", name) for name, one in figures.items()}
    simple = {name: figures[name]["test"]["mse"] for name in figures if kinds[name] in CLOSED_FORM}
    best = min(simple, key=lambda name: simple[name], default="")

    def verdict(name: str) -> Convergence:
        one = figures[name]
        history, trivial, error = one.get("history"), one.get("trivial_mse"), one["test"]["mse"]
        if history is not None and not history:
            return Convergence(one["converged"], one["reason"])
        if history is None or trivial is None:
            return Convergence(None, NOT_JUDGED)
        if best and not _is_weaker(kinds[name]) and error > (1 + _WORSE) * simple[best]:
            ratio = error / max(simple[best], 1e-12)
            reason = f"its error is {ratio:.2f} times that of the {best} baseline, which takes seconds"
            return Convergence(False, reason)
        fit = judge_outcome(history, trivial)
        return Convergence(fit.converged, fit.reason)

    return {name: verdict(name) for name in figures}


def suite_verdict(result: Mapping[str, Any]) -> Convergence:
    """Today's verdict on all attacks of a result that keeps their figures as `attacks`; not judged where it does not.

    A result rests on its whole suite: while one attack has not converged, a longer one may be the strongest.

    >>> suite_verdict({"mse_test": 0.03, "converged": True}).converged is None
    True
    """
    found = list(judged(result.get("attacks") or {}).values())
    # What is wrong with one attack comes before what is unknown of another.
    for wanted in (False, None):
        for one in found:
            if one.converged is wanted:
                return one
    if not found:
        return Convergence(None, NOT_JUDGED)
    return found[0] if len(found) == 1 else Convergence(True, "every attack had converged")
