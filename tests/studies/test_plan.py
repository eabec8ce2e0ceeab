"""Tables and figures as data: which experiments they stand for."""

from dataclasses import replace
from pathlib import Path

import pytest

from sfumato.errors import ConfigError
from sfumato.studies import Store
from sfumato.studies.efficiency import TimingTrial
from sfumato.studies.plan import (
    RowSpec,
    budget_names,
    build_experiment,
    experiments_of,
    load_budget,
    load_rows,
    load_spec,
    paper_names,
    spec_names,
)
from sfumato.training import TrainConfig

ROOT = Path(__file__).parents[2]
ROWS = load_rows()
ROW_KINDS = ("noise", "cem", "mine")


def test_every_table_and_figure_of_the_paper_is_there():
    assert set(paper_names()) == {*(f"table{n}" for n in range(1, 10)), "fig3", "fig4a", "fig4b", "fig4c", "fig5"}
    assert set(spec_names()) == {*paper_names(), "ablation", "ablation_fashion", "digits", "leaderboard"}


@pytest.mark.parametrize("name", [name for name in spec_names() if name != "table9"])
@pytest.mark.parametrize("budget", budget_names())
def test_every_experiment_can_be_described(name, budget):
    found = experiments_of(load_spec(name), load_budget(budget), ROWS, seeds=[0])
    assert len({one.key for one in found}) == len(found) > 0


def test_table_1_has_the_papers_fifteen_rows_and_two_baselines():
    found = experiments_of(load_spec("table1"), load_budget("paper"), ROWS, seeds=[0])
    paper = [one for one in found if ROWS[one.row].paper]
    assert len(paper) == 15
    assert {one.row for one in found} - {one.row for one in paper} == {"later_cut", "label_smoothing"}
    assert all([type(attack).__name__ for attack in one.attacks] == ["DecoderConfig", "GanConfig"] for one in found)


def test_the_paper_budget_is_what_the_papers_text_says():
    budget = load_budget("paper")
    (one,) = [
        one
        for one in experiments_of(load_spec("table1"), budget, ROWS, seeds=[0])
        if one.row == "bottleneck" and one.train.cem
    ]
    train = one.train
    assert (train.epochs, train.noise_std, train.lam, train.mixture["clusters_per_class"]) == (240, 0.025, 16.0, 3)
    assert (train.network, train.cut_at, train.bottleneck, train.limit) == ("vgg11", 2, 8, None)
    assert [attack.epochs for attack in one.attacks] == [50, 150]
    tiny = build_experiment(budget, "tinyimagenet", ROWS["none"], cem=False, seed=0).train
    assert (tiny.epochs, tiny.network, tiny.cut_at, tiny.bottleneck) == (120, "resnet20", "stage2.block1", 0)


def test_as_published_is_another_budget_with_other_keys():
    plain, published = load_budget("lite"), load_budget("lite", as_published=True)
    ours, theirs = (build_experiment(b, "cifar10", ROWS["ressfl"], cem=True, seed=0) for b in (plain, published))
    assert ours.key != theirs.key
    assert (theirs.train.scaling, theirs.train.covariance, theirs.train.clusters_per_class) == (
        "as_published",
        "spherical",
        5,
    )
    assert theirs.train.lam_schedule == "lr_coupled"


def test_as_printed_is_the_preset_and_another_budget():
    budget = load_budget("paper", as_printed=True)
    assert (budget.name, load_budget("paper").name) == ("paper+as_printed", "paper")
    both = (load_budget("paper"), budget)
    plain, printed = (build_experiment(one, "cifar10", ROWS["ressfl"], cem=True, seed=0) for one in both)
    assert plain.key != printed.key
    preset = TrainConfig.as_printed()
    chosen = ("cem", "fit", "update", "refresh_every", "covariance", "scaling", "lam_schedule", "hold_out", "lam")
    for name in (*chosen, "clusters_per_class"):
        assert getattr(printed.train, name) == getattr(preset, name), name
    with pytest.raises(ConfigError, match="--as-published is the authors' code and --as-printed the paper's text"):
        load_budget("lite", as_published=True, as_printed=True)


def test_figures_vary_the_noise_as_a_variance_and_lambda_in_the_papers_units():
    found = experiments_of(load_spec("fig4b"), load_budget("lite"), ROWS, seeds=[0])
    assert len(found) == 5 * 6
    assert {round(one.train.noise_std**2, 4) for one in found} == {0.001, 0.01, 0.05, 0.1, 0.3, 0.5}
    weights = sorted({one.train.lam / 16 for one in found if one.train.cem})
    base = load_budget("lite").lam["sixteen_is"] / 16
    assert weights == pytest.approx([base * lam / 16 for lam in (2, 8, 16, 32)])
    cuts = {one.train.cut_at for one in experiments_of(load_spec("fig4c"), load_budget("lite"), ROWS, seeds=[0])}
    assert cuts == {1, 2, 3}


def test_the_study_on_the_digits_leaves_each_fold_out_twice():
    found = experiments_of(load_spec("digits"), load_budget("lite"), ROWS)
    alone = [one for one in found if not one.train.cem]
    with_cem = [one for one in found if one.train.cem]
    assert sorted({one.train.noise_std for one in alone}) == [0.025, 0.05, 0.1, 0.2, 0.4, 0.7]
    assert sorted({(one.train.noise_std, one.train.lam) for one in with_cem}) == [
        (noise, lam) for noise in (0.025, 0.05, 0.1) for lam in (0.25, 0.5)
    ]
    assert len(found) == 12 * 10
    for one in found:
        assert one.fold == one.train.seed % 5
    few = experiments_of(load_spec("digits"), load_budget("lite"), ROWS, wanted=["noise"], seeds=[7])
    assert {(one.row, one.fold) for one in few} == {("study_noise", 2)}


def test_the_leaderboard_has_noise_alone_and_cem_beside_every_added_row():
    rows = ROWS | {"mine": RowSpec("mine", "Mine", {"defense": "dropout"})}
    found = experiments_of(load_spec("leaderboard") | {"added": ["mine"]}, load_budget("day"), rows)
    assert {one.train.seed for one in found} == {0, 1, 2}
    noise, cem, mine = ([one for one in found if one.row.startswith(f"leaderboard_{name}")] for name in ROW_KINDS)
    assert (len(noise), len(cem), len(mine)) == (7 * 3, 3 * 4 * 3, 3 * 3)
    assert {one.train.noise_std for one in mine} == {one.train.noise_std for one in cem} == {0.05, 0.1, 0.2}
    assert {one.train.defense for one in mine} == {"dropout"}
    assert (min(one.train.noise_std for one in noise), max(one.train.noise_std for one in noise)) == (0.025, 1.4)


@pytest.mark.parametrize(("budget", "fewest"), [("lite", 45), ("day", 38)])
def test_every_stored_result_is_found_under_the_key_of_a_spec(budget, fewest):
    """Whatever moves in the code: what was measured is read again, under today's name or that of the first CEM."""
    store = Store(ROOT / "results" / budget)
    files = {path.stem for path in store.folder.glob("*.json")}
    budgets = [load_budget(budget), load_budget(budget, as_published=True), load_budget(budget, as_printed=True)]
    known = {TimingTrial(one).key for one in budgets}
    for spec in map(load_spec, spec_names()):
        for one in (one for budget in budgets for one in experiments_of(spec, budget, ROWS)):
            known |= {one.key, one.older_key}
    assert len(files) >= fewest
    assert files <= known
    assert all(store.read(name)["evidence"]["torch"] for name in files)
    assert {path.stem for path in store.folder.glob("*.png")} <= files


def test_seeds_come_one_after_the_other():
    found = experiments_of(load_spec("table1"), load_budget("lite"), ROWS)
    seeds = [one.train.seed for one in found]
    assert seeds == sorted(seeds)
    assert set(seeds) == {0, 1, 2}


def test_the_key_changes_with_every_setting_but_not_with_the_machine():
    budget = load_budget("lite")
    one = build_experiment(budget, "cifar10", ROWS["ressfl"], cem=False, seed=0)
    assert replace(one, train=replace(one.train, data_dir="/elsewhere", device="cpu")).key == one.key
    others = {
        build_experiment(budget, "cifar10", ROWS["ressfl"], cem=True, seed=0).key,
        build_experiment(budget, "cifar10", ROWS["ressfl"], cem=False, seed=1).key,
        build_experiment(budget, "cifar10", ROWS["ressfl"], cem=False, seed=0, noise_std=0.1).key,
        build_experiment(budget, "cifar10", ROWS["ressfl"], cem=False, seed=0, cut=1).key,
        build_experiment(budget, "cifar10", ROWS["ressfl"], cem=False, seed=0, attacks=["decoder"]).key,
        build_experiment(budget, "cifar100", ROWS["ressfl"], cem=False, seed=0).key,
        build_experiment(load_budget("smoke"), "cifar10", ROWS["ressfl"], cem=False, seed=0).key,
    }
    assert len(others | {one.key}) == 8


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ConfigError, match="unknown budget 'huge'; choose one of smoke, lite, day, paper"):
        load_budget("huge")
    with pytest.raises(
        ConfigError,
        match="unknown table or figure 'table10'; choose one of ablation, ablation_fashion, .*table9, or all",
    ):
        load_spec("table10")
    with pytest.raises(ConfigError, match="table1 has no row 'resfl'; its rows are none, .*ressfl"):
        experiments_of(load_spec("table1"), load_budget("lite"), ROWS, wanted=["resfl"])
    with pytest.raises(ConfigError, match="leaderboard has no row 'mine'; its rows are noise, cem0.05, .*cem0.2"):
        experiments_of(load_spec("leaderboard"), load_budget("day"), ROWS, wanted=["mine"])
