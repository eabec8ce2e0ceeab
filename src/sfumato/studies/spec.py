"""Budgets and table rows, read from the data files in `specs/`."""

from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from sfumato.errors import ConfigError

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
        name: `smoke`, `lite` or `paper`, with `+as_published` or `+as_printed` where that is laid over.
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
    return ("smoke", "lite", "paper")


def spec_names() -> tuple[str, ...]:
    """The tables and figures, the ablation, and the study on the digits."""
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
