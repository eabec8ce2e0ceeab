"""Ours beside published: means, averages and gains from results with known figures."""

from pathlib import Path

import pytest
from experiment_data import filled

from sfumato.report.tables import to_markdown
from sfumato.studies.comparison import comparison_table
from sfumato.studies.curves import gains_table
from sfumato.studies.engine import Store
from sfumato.studies.plan import experiments_of, load_budget, load_rows, load_spec
from sfumato.studies.results import collect

ROOT = Path(__file__).parents[2]
ROWS, LITE = load_rows(), load_budget("lite")
TABLE1 = load_spec("table1")


def table_of(store):
    return comparison_table(TABLE1, LITE, ROWS, collect(TABLE1, LITE, ROWS, store))


def numbers(experiment):
    """Without CEM 0.01 in every row, with it 0.015; each seed a bit more accurate than the one before."""
    return {
        "accuracy": 0.5 + 0.01 * experiment.train.seed,
        "mse": 0.015 if experiment.train.cem else 0.01,
    }


def test_an_empty_store_shows_the_published_numbers_alone(tmp_path):
    table = table_of(Store(tmp_path))
    bottleneck = next(row for row in table.rows if row.label == "Bottleneck")
    assert [cell.ours for cell in bottleneck.cells] == [None] * 8
    assert [cell.published for cell in bottleneck.cells] == [0.9087, 0.0036, 0.0041, 0.0039, 0.0045, None, None, None]
    assert any("0 of 57 experiments are done" in note for note in table.notes)
    to_markdown(table)


def test_means_spreads_averages_and_the_papers_gain(tmp_path):
    store = filled(tmp_path, experiments_of(TABLE1, LITE, ROWS), numbers)
    table = table_of(store)
    by_label = {row.label: row for row in table.rows}
    accuracy, train, test, _, _, strongest, identified, information = by_label["ResSFL+CEM"].cells
    assert strongest.ours == pytest.approx(0.96 * 0.015)  # nearest neighbours, which run beside decoder and GAN
    assert (identified.ours, information.ours) == (0.5, 10.0)
    assert accuracy.ours == pytest.approx(0.51)
    assert accuracy.spread == pytest.approx(0.01)  # of 0.50, 0.51, 0.52
    assert (train.ours, test.ours) == pytest.approx((0.0075, 0.015))
    assert by_label["ResSFL+CEM"].note == "3 seeds"
    assert by_label["Average w/o CEM"].cells[2].ours == pytest.approx(0.01)
    assert by_label["Average w/o CEM"].note == "ours over 7 of 7 defences"
    gains = [note for note in table.notes if "gain in MSE" in note]
    assert len(gains) == 2
    assert all("+50.0%" in note for note in gains)
    assert "published averages give +24.0%" in gains[0]
    assert "the text states +12.9%" in gains[1]
    assert any("made up" in note for note in table.notes)


def test_baselines_and_incomplete_pairs_stay_out_of_the_averages(tmp_path):
    chosen = [
        one
        for one in experiments_of(TABLE1, LITE, ROWS)
        if one.row in ("bottleneck", "later_cut") or (one.row == "patrol" and not one.train.cem)
    ]
    store = filled(tmp_path, chosen, lambda one: {"accuracy": 0.5, "mse": 0.01 if one.row == "bottleneck" else 0.9})
    table = table_of(store)
    average = next(row for row in table.rows if row.label == "Average w/o CEM")
    assert average.cells[2].ours == pytest.approx(0.01)
    assert average.note == "ours over 1 of 7 defences"


def changed(store, change):
    """The first result of Table 1, one attack of which is stored otherwise."""
    key = experiments_of(TABLE1, LITE, ROWS, seeds=[0])[0].key
    result = store.read(key)
    change(result)
    store.write(key, {name: value for name, value in result.items() if name != "key"})


def test_attacks_that_did_not_converge_are_counted_by_their_history(tmp_path):
    store = filled(tmp_path, experiments_of(TABLE1, LITE, ROWS, seeds=[0]), numbers)
    changed(store, lambda result: result["attacks"]["gan"].update(history=[0.05, 0.04, 0.03, 0.02], converged=True))
    table = table_of(store)
    assert "had not converged: 1;" in " ".join(table.notes)
    assert table.rows[0].note == "1 seed, not converged"


def test_a_trained_attack_that_a_closed_form_leaves_behind_has_not_converged(tmp_path):
    store = filled(tmp_path, experiments_of(TABLE1, LITE, ROWS, seeds=[0]), numbers)
    changed(store, lambda result: result["attacks"]["nearest"]["test"].update(mse=0.005))
    assert "had not converged: 2;" in " ".join(table_of(store).notes)  # decoder and GAN


def test_results_older_than_the_suite_show_dashes_and_are_not_judged(tmp_path):
    def older(result):
        for name in ("ridge", "nearest"):
            del result["attacks"][name]
        for one in result["attacks"].values():
            del one["history"], one["trivial_mse"]
        del result["leakage"], result["strongest"]

    store = filled(tmp_path, experiments_of(TABLE1, LITE, ROWS, seeds=[0]), numbers)
    changed(store, older)
    table = table_of(store)
    assert [cell.shown for cell in table.rows[0].cells[-3:]] == ["–", "–", "–"]
    assert table.rows[0].note == "1 seed, convergence not judged (older rule)"
    assert "Attacks without a stored history: 2;" in " ".join(table.notes)


@pytest.mark.parametrize("name", ["table1", "ablation"])
def test_what_the_repository_stores_is_read_under_its_keys_and_never_called_converged(name):
    store = Store(ROOT / "results" / "lite")
    spec = load_spec(name)
    findings = [one for _, settings in collect(spec, LITE, ROWS, store) for one in settings if one.results]
    assert findings
    for one in findings:
        old = [attack for result in one.results.values() for attack in result["attacks"].values()]
        assert one.count(None) == sum("history" not in attack for attack in old)


FIG4A = load_spec("fig4a")


def known(one):
    """Without CEM accuracy 0.8 - sigma and error sigma / 10; with CEM as accurate as sigma 0.2 would be."""
    wobble = 1 + 0.01 * one.train.seed
    if one.train.cem:
        return {"accuracy": 0.6, "mse": 0.03 * wobble}
    return {"accuracy": 0.8 - one.train.noise_std, "mse": one.train.noise_std / 10 * wobble}


def gains(folder, experiments, numbers):
    store = filled(folder, experiments, numbers)
    return gains_table(collect(FIG4A, LITE, ROWS, store), ROWS)


def test_the_gain_at_equal_accuracy_is_read_off_the_curve(tmp_path):
    table = gains(tmp_path, experiments_of(FIG4A, LITE, ROWS), known)
    assert len(table.rows) == 2 * 6  # the points with CEM of this figure, and no others
    row = table.rows[0]
    accuracy, value, expected, ratio, low, high = (cell.ours for cell in row.cells)
    assert row.label.startswith("Noise_Nopeek+CEM, cut 2, σ 0.031623,")
    assert row.note == "3 seeds; decoder, ridge, nearest"
    assert (accuracy, value) == pytest.approx((0.6, 0.96 * 0.03 * 1.01))
    assert expected == pytest.approx(0.96 * 0.0202, rel=1e-3)  # 0.2 / 10 at seed 1, the middle one
    assert (ratio, low, high) == pytest.approx((1.5, 1.5, 1.5), rel=1e-3)  # both errors wobble alike


def test_one_noise_level_is_no_curve(tmp_path):
    first = [one for one in experiments_of(FIG4A, LITE, ROWS) if one.train.noise_std < 0.04]
    assert gains(tmp_path, first, known) is None


def test_less_accurate_than_the_whole_curve_is_not_comparable(tmp_path):
    table = gains(
        tmp_path,
        experiments_of(FIG4A, LITE, ROWS, seeds=[0]),
        lambda one: {"accuracy": 0.01 if one.train.cem else 0.8 - one.train.noise_std, "mse": 0.01},
    )
    assert "not comparable" in table.rows[0].note
    assert table.rows[0].cells[4].ours is None
