import math
from dataclasses import replace

import pytest

from sfumato.studies.engine import Store
from sfumato.studies.plan import budget_names, experiments_of, load_budget, load_rows, load_spec
from sfumato.studies.results import collect
from sfumato.studies.variants import Variants, ablation_figures, ablation_table

SPEC, ROWS = load_spec("ablation"), load_rows()
BUDGET = replace(load_budget("lite"), seeds=(0, 1, 2))


def result(experiment, accuracy: float, error: float) -> dict:
    return {
        "hash": experiment.digest,
        "accuracy": accuracy,
        "attacks": {"decoder": {"train": {"mse": error}, "test": {"mse": error}, "converged": True, "reason": ""}},
        "seconds": 1.0,
        "attack_seconds": 1.0,
        "caveat": None,
        "evidence": {"device": "a machine", "torch": "2"},
    }


@pytest.fixture
def filled(tmp_path) -> Store:
    """Noise trades 10 points of accuracy for error linearly; CEM's default gains 1.5 x, `diagonal` 1.2 x."""
    store = Store(tmp_path)
    for one in experiments_of(SPEC, BUDGET, ROWS):
        train, wobble = one.train, 1 + 0.01 * one.train.seed
        if not train.cem:
            accuracy = 1.0 - 0.2 * train.noise_std
            store.write(one.key, result(one, accuracy, 0.01 + 0.1 * train.noise_std))
            continue
        accuracy = 0.96
        curve = 0.01 + 0.1 * (1.0 - accuracy) / 0.2
        factor = 1.2 if train.covariance == "diagonal" else 1.5
        store.write(one.key, result(one, accuracy, factor * wobble * curve))
    return store


def test_every_budget_has_distinct_experiments_and_every_setting_a_variant():
    for name in budget_names():
        found = experiments_of(SPEC, load_budget(name), ROWS)
        assert len({one.key for one in found}) == len(found)
    changed = {field for variant in SPEC["variants"] for field in variant.get("settings", {})}
    assert {"covariance", "scaling", "clusters_per_class", "update", "lam_schedule", "bound"} <= changed


def test_literal_lambdas_are_the_equivalent_ones():
    from sfumato import CEM, data

    images = len(data.load("digits", seed=0).train)
    kept = images - round(0.1 * images)
    cem = CEM(num_classes=10, noise_std=0.05)
    import torch

    cem.refresh(torch.rand(kept, 32), torch.arange(kept) % 10)
    assert SPEC["budgets"]["lite"]["literal"] == pytest.approx(cem.equivalent_weight(1.0, 64, "literal"), rel=0.01)


def test_ratios_at_equal_accuracy_and_against_the_default(filled):
    found = Variants(SPEC, collect(SPEC, BUDGET, ROWS, filled))
    default, diagonal = (
        found.others[0].results,
        next(one for one in found.others if one.group.label == "diagonal").results,
    )
    over_noise, over_default = found.over_noise(default), found.over_noise(diagonal, default)
    assert over_noise.effect == pytest.approx(1.5 * 1.01, rel=1e-6)
    assert over_default.effect == pytest.approx(1.2 / 1.5, rel=1e-6)
    low, high = over_noise.interval
    # Student's t with 2 degrees of freedom over the jackknife's error of the mean of log(1.5), log(1.515), log(1.53)
    assert math.log(high / low) / 2 == pytest.approx(4.303 * 0.0099 / math.sqrt(3), rel=0.02)
    low, high = over_default.interval
    assert high - low < 1e-6  # paired: the wobble cancels


def test_the_table_and_the_figures_name_every_variant_and_axis(filled):
    found = Variants(SPEC, collect(SPEC, BUDGET, ROWS, filled))
    table = ablation_table(SPEC, found, ("a remark",))
    assert len(table.rows) == len(SPEC["variants"])
    assert "a remark" in table.notes
    first, diagonal = table.rows[0].cells, table.rows[2].cells
    assert first[2].ours == pytest.approx(1.515, rel=1e-6)
    assert (first[4].shown, diagonal[4].shown) == ("–", "0.80")
    axes = {variant["axis"] for variant in SPEC["variants"]} - {"default"}
    figures = ablation_figures(SPEC, found)
    assert {caption.splitlines()[0] for caption, _ in figures} == axes
    assert all("<svg" in svg for _, svg in figures)


def test_nothing_measured_shows_an_empty_table(tmp_path):
    found = Variants(SPEC, collect(SPEC, BUDGET, ROWS, Store(tmp_path)))
    table = ablation_table(SPEC, found, ())
    assert all(cell.shown == "–" for row in table.rows for cell in row.cells)
    assert ablation_figures(SPEC, found) == []


def test_points_less_accurate_than_all_noise_are_not_compared(tmp_path):
    store = Store(tmp_path)
    for one in experiments_of(SPEC, BUDGET, ROWS):
        store.write(one.key, result(one, 0.1 if one.train.cem else 1.0 - 0.2 * one.train.noise_std, 0.03))
    found = Variants(SPEC, collect(SPEC, BUDGET, ROWS, store))
    assert found.comparable(found.others[0].results) == []
    assert ablation_table(SPEC, found, ()).rows[0].cells[2].shown == "–"
