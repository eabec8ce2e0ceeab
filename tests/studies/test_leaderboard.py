"""The leaderboard: gains at equal accuracy against values by hand, and a sentence that claims no more."""

from pathlib import Path

import pytest
from experiment_data import filled, result_of

from sfumato import data, defenses
from sfumato.cli.main import main
from sfumato.studies import Store
from sfumato.studies.plan import RowSpec, experiments_of, load_budget, load_rows, load_spec
from sfumato.studies.presentation import present, save
from sfumato.studies.results import SeedResults, collect
from sfumato.studies.variants import Variants, leaderboard_figures, leaderboard_table

ROOT = Path(__file__).parents[2]
BUDGET = load_budget("day")
ROWS = load_rows() | {"mine": RowSpec("mine", "Mine", {"defense": "dropout"})}
SPEC = load_spec("leaderboard") | {"added": ["mine"]}


def identified(one, share):
    return {"identified": share, "information": 10.0, "information_error": 0.1, "identified_at_most": 0.9}


def board(folder, factor: float, less: float, jitter: float = 0.01) -> Variants:
    """Noise trades accuracy for error and identification along straight lines; CEM and `mine` meet them at .9.

    CEM has `factor` times the error of the line there and identifies `less` less; `mine` lies on the line.
    """
    store = Store(folder)
    for one in experiments_of(SPEC, BUDGET, ROWS):
        noise, wobble = one.train.noise_std, 1 + jitter * (one.train.seed - 1)
        accuracy = 0.9 if "noise" not in one.row else 1.0 - 0.2 * noise
        error, share = 0.01 + 0.1 * (1.0 - accuracy), 0.8 - 2 * (1.0 - accuracy)
        if one.train.cem:
            error, share = factor * error, share - less
        if "noise" not in one.row:
            error, share = error * wobble, share * wobble
        store.write(one.key, result_of(one, accuracy, error, leakage=identified(one, share)))
    return Variants(SPEC, collect(SPEC, BUDGET, ROWS, store))


def test_gains_at_equal_accuracy_are_found(tmp_path):
    made = board(tmp_path, 1.3, 0.1)
    every = [one for variant in made.others if variant.group.family == "CEM" for one in variant.results]
    settings = made.comparable(every)
    assert len(settings) == len(every) == 12
    error, share = made.over_noise(settings), made.identified(settings)
    # the geometric mean of each seed's mean: the jitter of three seeds averages to 1
    assert error.effect == pytest.approx(1.3, rel=1e-6)
    assert share.effect == pytest.approx(-0.1)
    assert error.interval[0] < 1.3 < error.interval[1]
    text = leaderboard_table(SPEC, made, ()).notes[0]
    assert "with CEM is 1.30 times that with noise alone" in text
    assert "differs by −10.0 points" in text
    assert "against reconstruction and identification alike CEM protects better." in text


@pytest.mark.parametrize(
    ("factor", "less", "said"),
    [
        (1.0, 0.0, "reconstruction and identification alike noise alone does as well"),
        (0.7, -0.2, "reconstruction and identification alike noise alone protects better"),
        (1.3, 0.0, "reconstruction CEM protects better, against identification noise alone does as well"),
    ],
)
def test_the_sentence_says_where_noise_alone_does_as_well(tmp_path, factor, less, said):
    cem, mine = leaderboard_table(SPEC, board(tmp_path, factor, less), ("a remark",)).notes[:2]
    assert f"against {said}." in cem
    assert "noise alone does as well" in mine


def test_every_setting_and_curve_is_shown(tmp_path):
    made = board(tmp_path, 1.3, 0.1)
    table = leaderboard_table(SPEC, made, ())
    assert len(table.rows) == 7 + 12 + 3 + 2
    figures = leaderboard_figures(SPEC, made)
    assert [len(svg.rows) for _, svg in figures] == [22, 22]
    assert all(len(table.columns) == len(row.cells) for row in table.rows)


def test_less_accuracy_than_all_noise_is_not_compared_and_nothing_is_no_gain(tmp_path):
    experiments = experiments_of(SPEC, BUDGET, ROWS)
    low = filled(
        tmp_path,
        experiments,
        lambda one: {"accuracy": 0.1 if one.train.cem else 1 - 0.2 * one.train.noise_std, "mse": 0.03},
    )
    made = Variants(SPEC, collect(SPEC, BUDGET, ROWS, low))
    sentence = leaderboard_table(SPEC, made, ()).notes[0]
    assert sentence == "CEM is not comparable with noise alone yet: 0 of 12 settings comparable."
    empty = present(SPEC, BUDGET, ROWS, Store(tmp_path / "none"))
    assert len(empty.tables[0].rows) == 24
    assert empty.figures == []


def test_the_study_on_the_digits_counts_folds(tmp_path):
    """Two seeds of the smoke budget are two folds: noise alone loses accuracy, CEM gains half the error."""
    spec, budget = load_spec("digits"), load_budget("smoke")

    def numbers(one):
        noise = one.train.noise_std
        cem = {"accuracy": 0.95, "mse": 0.03}
        return cem if one.train.cem else {"accuracy": 1 - noise / 5, "mse": 0.02 * noise / 0.25}

    shown = present(spec, budget, {}, filled(tmp_path / "store", experiments_of(spec, budget, {}), numbers))
    # Accuracy 0.95 is noise 0.25 on the line between 0.05 and 0.7, whose error is 0.02.
    assert "error with CEM is 1.50 times that with noise alone (95 % interval 1.50 to 1.50)" in shown.markdown()
    assert "2 folds, 6 of 6 settings comparable" in shown.markdown()
    assert "Budget smoke, all training images, 2 epochs, decoding attack of 1: 16 of 16 experiments" in shown.markdown()
    paths = {path.name for path in save(shown, tmp_path / "out", budget)}
    assert paths == {f"digits-smoke.{suffix}" for suffix in ("md", "csv", "tex", "html")}
    assert (tmp_path / "out" / "digits-smoke-figure1.pdf").exists()


def test_seeds_of_one_fold_share_its_images_and_are_averaged():
    spec, budget = load_spec("digits"), load_budget("lite")
    first = next(one for one in experiments_of(spec, budget, {}) if one.train.seed == 0)
    results = {seed: result_of(first, 0.9 + seed / 100, 0.02) for seed in (0, 1, 5)}
    found = SeedResults(first, results).by_seed(["decoder"])
    assert {fold: accuracy for fold, (accuracy, _) in found.items()} == pytest.approx({0: 0.925, 1: 0.91})


def test_a_plugin_is_a_row_beside_all_others(tmp_path, capsys, in_this_process):
    """Every result but one of the plugin's is made up; that one is measured."""
    plugin = ROOT / "docs/examples/feature_tv.py"
    defenses.load_plugin(plugin)  # its digest is in the names of the results
    row = RowSpec("feature_tv", "feature_tv", {"defense": "feature_tv"})
    budget, rows = load_budget("smoke"), load_rows() | {"feature_tv": row}
    every = experiments_of(load_spec("leaderboard") | {"added": ["feature_tv"]}, budget, rows)
    images = data.limit(data.load("digits", seed=0).train, 120, 0).fingerprint()
    store = filled(tmp_path / "smoke", every, lambda one: {"accuracy": 0.5, "mse": 0.01, "data": images})
    store.path(every[-1].key).unlink()
    command = ["reproduce", "leaderboard", "--budget", "smoke", "--plugin", str(plugin), "--rows", "feature_tv"]
    assert main([*command, "--results", str(tmp_path), "--work", str(tmp_path / "work")]) == 0
    printed = capsys.readouterr().out
    assert "3 of 3 experiments are done" in printed
    assert "feature_tv, all settings" in printed
    assert store.read(every[-1].key)["config"]["train"]["defense"] == "feature_tv"
