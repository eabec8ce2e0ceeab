"""From a table or figure and a budget to the experiments it needs."""

from collections.abc import Iterable, Sequence
from typing import Any

from sfumato.attacks import DecoderConfig, GanConfig
from sfumato.errors import ConfigError
from sfumato.experiments.ablation import ablation_experiments
from sfumato.experiments.budget import Budget, RowSpec
from sfumato.experiments.experiment import Experiment
from sfumato.training import TrainConfig

__all__ = ["build_experiment", "curve_experiment", "experiments_of", "select_rows"]

_SIZES = {"cifar10": 32, "cifar100": 32, "tinyimagenet": 64, "facescrub": 48}
_NETWORKS = {"cifar10": "vgg11", "cifar100": "vgg11", "tinyimagenet": "resnet20", "facescrub": "vgg11"}
_PAPER_LAMBDA = 16.0
_TABLE_NOISE = 0.025


def build_experiment(
    budget: Budget,
    dataset: str,
    row: RowSpec,
    *,
    cem: bool,
    seed: int,
    attacks: Sequence[str] = ("decoder", "gan"),
    noise_std: float | None = None,
    lam: float = _PAPER_LAMBDA,
    cut: int | str | None = None,
) -> Experiment:
    """One experiment.

    Args:
        budget: how much work.
        dataset: as the paper names it.
        row: the defence.
        cem: whether CEM is added.
        seed: of the repetition.
        attacks: names of the attacks.
        noise_std: in place of the row's.
        lam: in the paper's units, in which the tables have 16.
        cut: in place of the row's.
    """
    network = _NETWORKS[dataset]
    settings: dict[str, Any] = {"noise_std": _TABLE_NOISE, "model": network}
    settings |= budget.train_settings(dataset) | row.settings | row.by_network.get(network, {})
    if budget.stand_in:
        settings |= {"data": "digits", "size": _SIZES[dataset]}
    else:
        settings["data"] = dataset
    if noise_std is not None:
        settings["noise_std"] = noise_std
    if cut is not None:
        settings["cut"] = cut
    if cem:
        settings |= {
            "cem": True,
            "lam": budget.lam["sixteen_is"] * lam / _PAPER_LAMBDA,
            "scaling": budget.lam["scaling"],
            "lam_schedule": budget.lam["schedule"],
        }
    chosen: list[DecoderConfig | GanConfig] = []
    if "decoder" in attacks:
        chosen.append(DecoderConfig(**budget.decoder, seed=seed))
    if "gan" in attacks:
        chosen.append(GanConfig(**budget.gan, seed=seed))
    return Experiment(budget.name, dataset, row.name, TrainConfig(**settings, seed=seed), tuple(chosen))


def select_rows(spec: dict[str, Any], rows: dict[str, RowSpec], wanted: Sequence[str] | None) -> list[RowSpec]:
    """The rows of a table, or the wanted ones of them.

    Raises:
        ConfigError: a wanted row is not known; the text lists those of the table.
    """
    own = [*spec.get("rows", ()), *spec.get("baselines", ()), *spec.get("added", ())]
    if wanted is None:
        return [rows[name] for name in own]
    if foreign := [name for name in wanted if name not in own]:
        raise ConfigError(f"{spec['name']} has no row {foreign[0]!r}; its rows are {', '.join(own)}")
    return [rows[name] for name in own if name in wanted]


def experiments_of(
    spec: dict[str, Any],
    budget: Budget,
    rows: dict[str, RowSpec],
    *,
    wanted: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Experiment]:
    """The experiments behind a table or figure, all rows of the first seed before the second seed.

    Raises:
        ConfigError: a wanted row is unknown.
    """
    if spec["kind"] == "ablation":
        return ablation_experiments(spec, budget, wanted=wanted, seeds=seeds)
    found: list[Experiment] = []
    for seed in budget.seeds if seeds is None else seeds:
        found += _of_seed(spec, budget, rows, wanted, seed)
    return list({experiment.key: experiment for experiment in found}.values())


def _of_seed(
    spec: dict[str, Any], budget: Budget, rows: dict[str, RowSpec], wanted: Sequence[str] | None, seed: int
) -> Iterable[Experiment]:
    dataset = spec["dataset"]
    if spec["kind"] in ("comparison", "pictures"):
        for row in select_rows(spec, rows, wanted):
            for cem in (False, True) if row.with_cem else (False,):
                yield build_experiment(budget, dataset, row, cem=cem, seed=seed)
    elif spec["kind"] in ("curves", "entropy"):
        for curve in spec["curves"]:
            if wanted is not None and curve["row"] not in wanted:
                continue
            for variance in spec["variances"]:
                yield curve_experiment(spec, budget, rows, curve, variance, seed)


def curve_experiment(
    spec: dict[str, Any],
    budget: Budget,
    rows: dict[str, RowSpec],
    curve: dict[str, Any],
    variance: float,
    seed: int,
) -> Experiment:
    """One point of a figure's curve: the noise's variance decides, as in the paper's figures."""
    return build_experiment(
        budget,
        spec["dataset"],
        rows[curve["row"]],
        cem=curve["cem"],
        seed=seed,
        attacks=spec["attacks"],
        noise_std=round(variance**0.5, 6),
        lam=curve.get("lam", _PAPER_LAMBDA),
        cut=curve.get("cut"),
    )
