"""The data files in `specs/`, and from a spec (a table, a figure, a study) and a budget to the experiments it needs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

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
    """The rows of a table, or the wanted ones of them."""
    known = [*spec.get("rows", ()), *spec.get("baselines", ()), *spec.get("added", ())]
    return [rows[name] for name in _wanted(spec, known, wanted)]


def _wanted(spec: dict[str, Any], known: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    if unknown := [name for name in wanted or () if name not in known]:
        raise ConfigError(f"{spec['name']} has no row {unknown[0]!r}; its rows are {', '.join(known)}")
    return [name for name in known if wanted is None or name in wanted]


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
    """The experiments behind a spec, all rows of the first seed before the second seed."""
    found = [
        one
        for seed in (seeds_of(spec, budget) if seeds is None else seeds)
        for one in _of_seed(spec, budget, rows, wanted, seed)
    ]
    return list({experiment.key: experiment for experiment in found}.values())


def curve_experiments(
    spec: dict[str, Any], budget: Budget, rows: dict[str, RowSpec], curve: dict[str, Any], seed: int
) -> list[Experiment]:
    """The points of a figure's curve: the noise's variance decides, as in the paper's figures."""
    return [
        build_experiment(
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
        for variance in spec["variances"]
    ]


def level_experiments(spec: dict[str, Any], budget: Budget, seed: int, row: RowSpec | None = None) -> list[Experiment]:
    """Noise alone at every level, the curve to compare with; or a row of the leaderboard at the variants' levels."""
    name, settings, levels = "noise", {}, _settings(spec, budget)["noise_stds"]
    if row is not None:
        levels = dict.fromkeys(variant["settings"]["noise_std"] for variant in spec["variants"])
        name, settings = row.name, row.settings
    return [_special(spec, budget, spec["prefix"] + name, settings | {"noise_std": noise}, seed) for noise in levels]


def variant_experiments(spec: dict[str, Any], budget: Budget, variant: dict[str, Any], seed: int) -> list[Experiment]:
    """The points of a variant of CEM, one per lambda in the variant's own unit."""
    of_budget = _settings(spec, budget)
    unit = variant.get("unit")
    lams = variant.get("lams") or of_budget["lams"]
    if unit == "published":
        lams = of_budget[unit]
    elif unit is not None:
        lams = [lam * of_budget[unit] for lam in lams]
    settings = {"cem": True, "noise_std": of_budget.get("noise_std")} | variant.get("settings", {})
    name = spec["prefix"] + variant["name"]
    return [_special(spec, budget, name, settings | {"lam": round(lam, 6)}, seed) for lam in lams]


def _of_seed(
    spec: dict[str, Any], budget: Budget, rows: dict[str, RowSpec], wanted: Sequence[str] | None, seed: int
) -> Iterator[Experiment]:
    if spec["kind"] in ("comparison", "pictures"):
        for row in select_rows(spec, rows, wanted):
            for cem in (False, True) if row.with_cem else (False,):
                yield build_experiment(budget, spec["dataset"], row, cem=cem, seed=seed)
    elif spec["kind"] in ("curves", "entropy"):
        for curve in spec["curves"]:
            if wanted is None or curve["row"] in wanted:
                yield from curve_experiments(spec, budget, rows, curve, seed)
    elif "variants" in spec:
        added = spec.get("added", ()) if spec["kind"] == "leaderboard" else ()
        known = _wanted(spec, ["noise", *(variant["name"] for variant in spec["variants"]), *added], wanted)
        if "noise" in known:
            yield from level_experiments(spec, budget, seed)
        for variant in spec["variants"]:
            if variant["name"] in known:
                yield from variant_experiments(spec, budget, variant, seed)
        for name in added:
            if name in known:
                yield from level_experiments(spec, budget, seed, rows[name])


def _settings(spec: dict[str, Any], budget: Budget) -> dict[str, Any]:
    """What the spec says about this budget; empty where it leaves all to the budget itself."""
    found: dict[str, Any] = spec.get("budgets", {}).get(budget.name.split("+")[0], {})
    return found


def _special(spec: dict[str, Any], budget: Budget, row: str, settings: dict[str, Any], seed: int) -> Experiment:
    """A spec with networks of its own; with `folds` each seed leaves out another part of the images."""
    of_budget = _settings(spec, budget)
    dataset = of_budget["dataset"]
    from_budget = dataset != "digits"
    base = budget.train_settings(dataset) if from_budget else {}
    train = TrainConfig(**(base | of_budget["settings"] | settings), seed=seed)
    decoder = DecoderConfig(**((budget.decoder if from_budget else {}) | of_budget["decoder"]), seed=seed)
    fold = seed % FOLDS if spec.get("folds") else None
    return Experiment(budget.name, dataset, row, train, (decoder,), fold)
