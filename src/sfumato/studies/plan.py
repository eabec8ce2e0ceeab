"""The data files in `specs/`, and from a spec (a table, a figure, a study) and a budget to the experiments it needs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.resources import files
from typing import Any, NamedTuple

import yaml

from sfumato.attacks import DecoderConfig, GanConfig
from sfumato.errors import ConfigError
from sfumato.studies.experiment import FOLDS, Experiment
from sfumato.training import TrainConfig

_TITLES = {
    "as_published": "with the settings of the authors' code",
    "as_printed": "with Algorithm 1 as the paper prints it",
}


@dataclass(frozen=True)
class RowSpec:
    """A row of the tables: what a defence changes about a training.

    Attributes:
        settings, by_network: of `TrainConfig`; the latter by the network's name.
        with_cem: whether the row also exists with CEM.
        paper: whether the paper has it (and its averages count it).
    """

    name: str
    label: str
    settings: dict[str, Any] = field(default_factory=dict)
    by_network: dict[str, dict[str, Any]] = field(default_factory=dict)
    with_cem: bool = True
    paper: bool = False


@dataclass(frozen=True)
class Budget:
    """How much work an experiment may be.

    Attributes:
        name: `smoke`, `lite`, `day` or `paper`, with `+as_published` or `+as_printed` where that is laid over.
        seeds: of the repetitions.
        settings, by_dataset: of `TrainConfig`; the latter by the data set's name.
        decoder, gan: settings of the attacks.
        lam: `sixteen_is`, what the paper's lambda of 16 is here; `scaling`; `schedule`.
        timing: `batch` and `repetitions` of Table 9.
        stand_in: whether the embedded digits stand in for the data set.
    """

    name: str
    title: str
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    decoder: dict[str, Any]
    gan: dict[str, Any]
    lam: dict[str, Any]
    timing: dict[str, int]
    by_dataset: dict[str, dict[str, Any]] = field(default_factory=dict)
    stand_in: bool = False

    def train_settings(self, dataset: str) -> dict[str, Any]:
        """The settings of a training on this data set."""
        return self.settings | self.by_dataset.get(dataset, {})


def budget_names() -> tuple[str, ...]:
    """The budgets, smallest first."""
    return ("smoke", "lite", "day", "paper")


def spec_names() -> tuple[str, ...]:
    """The tables and figures, the ablations, the leaderboard, and the study on the digits."""
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in _specs().joinpath("tables").iterdir()))


def paper_names() -> tuple[str, ...]:
    """The tables and figures that the paper has, which is what `all` means."""
    return tuple(name for name in spec_names() if name.startswith(("table", "fig")))


def load_budget(name: str, *, as_published: bool = False, as_printed: bool = False) -> Budget:
    """A budget by name, with the settings of the authors' code or those of the printed Algorithm 1 laid over it."""
    if as_published and as_printed:
        raise ConfigError(
            "--as-published is the authors' code and --as-printed the paper's text, which differ; give one of them"
        )
    if name not in budget_names():
        raise ConfigError(f"unknown budget {name!r}; choose one of {', '.join(budget_names())}")
    values = dict(_read(f"budgets/{name}.yaml"))
    values["seeds"] = tuple(values["seeds"])
    budget = Budget(name=name, **values)
    if not (as_published or as_printed):
        return budget
    laid_over = "as_published" if as_published else "as_printed"
    over = _read(f"{laid_over}.yaml")
    datasets = {*budget.by_dataset, *over["by_dataset"]}
    return replace(
        budget,
        name=f"{name}+{laid_over}",
        title=f"{budget.title}; {_TITLES[laid_over]}",
        settings=budget.settings | over["settings"],
        by_dataset={one: budget.by_dataset.get(one, {}) | over["by_dataset"].get(one, {}) for one in datasets},
        decoder=budget.decoder | over["decoder"],
        lam=over["lam"],
    )


def load_rows() -> dict[str, RowSpec]:
    """The rows by name."""
    return {name: RowSpec(name=name, **values) for name, values in _read("rows.yaml").items()}


def load_spec(name: str) -> dict[str, Any]:
    """A table or figure as data."""
    if name not in spec_names():
        raise ConfigError(f"unknown table or figure {name!r}; choose one of {', '.join(spec_names())}, or all")
    return {"name": name, **_read(f"tables/{name}.yaml")}


def _specs() -> Any:
    return files("sfumato.studies").joinpath("specs")


@cache
def _read(path: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(_specs().joinpath(path).read_text(encoding="utf-8"))
    return values


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
    """An experiment; noise, lambda (in the paper's units, in which the tables have 16) and cut instead of the row's."""
    network = _NETWORKS[dataset]
    settings: dict[str, Any] = {"noise_std": _TABLE_NOISE, "model": network}
    settings |= budget.train_settings(dataset) | row.settings | row.by_network.get(network, {})
    if budget.stand_in:
        settings |= {"data": "digits", "size": _SIZES[dataset]}
    else:
        settings["data"] = dataset
    own = {"noise_std": noise_std, "cut": cut}
    settings |= {name: value for name, value in own.items() if value is not None}
    if cem:
        settings |= {
            "cem": True,
            "lam": budget.lam["sixteen_is"] * lam / _PAPER_LAMBDA,
            "scaling": budget.lam["scaling"],
            "lam_schedule": budget.lam["schedule"],
        }
    decoder, gan = DecoderConfig(**budget.decoder, seed=seed), GanConfig(**budget.gan, seed=seed)
    chosen = [one for name, one in (("decoder", decoder), ("gan", gan)) if name in attacks]
    return Experiment(budget.name, dataset, row.name, TrainConfig(**settings, seed=seed), tuple(chosen))


class Group(NamedTuple):
    """Experiments that stand together: a row of a table with and without CEM, a curve of a figure, a variant.

    Attributes:
        name: by which `--rows` chooses it.
        label: what readers see.
        family: what it is one of: a method of the leaderboard, a setting that an ablation changes; else empty.
        of_seed: its experiments with a seed, in the order in which they are shown.
    """

    name: str
    label: str
    family: str
    of_seed: Callable[[int], list[Experiment]]


def groups_of(spec: dict[str, Any], budget: Budget, rows: dict[str, RowSpec]) -> list[Group]:
    """The lines or curves of a spec; of the variants, noise alone comes first, and rows that a plugin brings last."""
    if spec["kind"] == "efficiency":
        return []
    if "curves" in spec:
        return [
            Group(curve["row"], curve["label"], "", partial(_curve, spec, budget, rows[curve["row"]], curve))
            for curve in spec["curves"]
        ]
    added = [rows[name] for name in spec.get("added", ())]
    if "variants" not in spec:
        own = [rows[name] for name in (*spec.get("rows", ()), *spec.get("baselines", ()))]
        return [Group(row.name, row.label, "", partial(_pair, budget, spec["dataset"], row)) for row in own + added]
    of_budget, variants = _settings(spec, budget), spec["variants"]
    special = partial(_specials, spec, budget)
    groups = [Group("noise", "noise alone", "noise alone", partial(special, "noise", {}, of_budget["noise_stds"]))]
    for one in variants:
        unit, lams = one.get("unit"), one.get("lams") or of_budget["lams"]
        if unit is not None:
            lams = of_budget[unit] if unit == "published" else [lam * of_budget[unit] for lam in lams]
        settings = {"cem": True, "noise_std": of_budget.get("noise_std")} | one.get("settings", {})
        label = one.get("label") or f"{one['method']}, σ {settings['noise_std']:g}"
        of_seed = partial(special, one["name"], settings, [round(lam, 6) for lam in lams])
        groups.append(Group(one["name"], label, one.get("method") or one["axis"], of_seed))
    for row in added if spec["kind"] == "leaderboard" else ():
        levels = dict.fromkeys(one["settings"]["noise_std"] for one in variants)
        groups.append(Group(row.name, row.label, row.label, partial(special, row.name, row.settings, levels)))
    return groups


def seeds_of(spec: dict[str, Any], budget: Budget) -> tuple[int, ...]:
    """The seeds of a spec's repetitions: the budget's, unless the spec has its own."""
    return tuple(_settings(spec, budget).get("seeds", budget.seeds))


def experiments_of(
    spec: dict[str, Any],
    budget: Budget,
    rows: dict[str, RowSpec],
    *,
    wanted: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Experiment]:
    """The experiments behind a spec, all rows of the first seed before the second seed.

    Raises:
        ConfigError: a wanted row is none of a table's; a figure has those of them that its curves are of.
    """
    groups = groups_of(spec, budget, rows)
    known = [group.name for group in groups]
    if groups and "curves" not in spec and (unknown := [name for name in wanted or () if name not in known]):
        raise ConfigError(f"{spec['name']} has no row {unknown[0]!r}; its rows are {', '.join(known)}")
    chosen = [group for group in groups if wanted is None or group.name in wanted]
    found = [
        one
        for seed in (seeds_of(spec, budget) if seeds is None else seeds)
        for group in chosen
        for one in group.of_seed(seed)
    ]
    return list({experiment.key: experiment for experiment in found}.values())


def _pair(budget: Budget, dataset: str, row: RowSpec, seed: int) -> list[Experiment]:
    return [
        build_experiment(budget, dataset, row, cem=cem, seed=seed)
        for cem in ((False, True) if row.with_cem else (False,))
    ]


def _curve(spec: dict[str, Any], budget: Budget, row: RowSpec, curve: dict[str, Any], seed: int) -> list[Experiment]:
    """The points of a figure's curve: the noise's variance decides, as in the paper's figures."""
    own: dict[str, Any] = {name: curve[name] for name in ("cem", "lam", "cut") if name in curve}
    own |= {"seed": seed, "attacks": spec["attacks"]}
    return [
        build_experiment(budget, spec["dataset"], row, noise_std=round(variance**0.5, 6), **own)
        for variance in spec["variances"]
    ]


def _specials(
    spec: dict[str, Any], budget: Budget, name: str, settings: dict[str, Any], strengths: Iterable[float], seed: int
) -> list[Experiment]:
    """Of a spec with networks of its own: along lambda with CEM, along the noise without.

    With `folds` each seed leaves out another part of the images.
    """
    of_budget = _settings(spec, budget)
    dataset = of_budget["dataset"]
    train, attack = (budget.train_settings(dataset), budget.decoder) if dataset != "digits" else ({}, {})
    train = train | of_budget["settings"] | settings
    decoder = DecoderConfig(**(attack | of_budget["decoder"]), seed=seed)
    fold = seed % FOLDS if spec.get("folds") else None
    varied = "lam" if settings.get("cem") else "noise_std"
    return [
        Experiment(
            budget.name, dataset, spec["prefix"] + name, TrainConfig(**train | {varied: strength}, seed=seed),
            (decoder,), fold,
        )
        for strength in strengths
    ]  # fmt: skip


def _settings(spec: dict[str, Any], budget: Budget) -> dict[str, Any]:
    """What the spec says about this budget; empty where it leaves all to the budget itself."""
    found: dict[str, Any] = spec.get("budgets", {}).get(budget.name.split("+")[0], {})
    return found
