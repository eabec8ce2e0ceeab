"""Figures 3 and 4 from results with known figures."""

import math

import pytest
from experiment_data import filled, result_of

from sfumato.errors import ConfigError
from sfumato.studies.curves import draw, exponential_fit, points_table
from sfumato.studies.engine import Store
from sfumato.studies.plan import experiments_of, load_budget, load_rows, load_spec
from sfumato.studies.results import collect

ROWS, LITE = load_rows(), load_budget("lite")


def test_a_known_exponential_is_found():
    x = [0.0, 100.0, 250.0, 400.0]
    fit = exponential_fit(x, [0.01 * math.exp(0.002 * value) for value in x])
    assert (fit.a, fit.b, fit.r2) == pytest.approx((0.01, 0.002, 1.0))


def test_r2_is_that_of_numpy():
    np = pytest.importorskip("numpy")
    x, y = [0.0, 1.0, 2.0, 4.0], [1.0, 3.0, 2.0, 9.0]
    fit = exponential_fit(x, y)
    assert fit.r2 == pytest.approx(np.corrcoef(x, np.log(y))[0, 1] ** 2)
    with pytest.raises(ConfigError, match="two different points"):
        exponential_fit([1.0, 1.0], [2.0, 3.0])


@pytest.mark.parametrize("name", ["fig3", "fig4a", "fig4b", "fig4c"])
def test_a_figure_shows_what_there_is(tmp_path, name):
    spec = load_spec(name)
    assert draw(spec, collect(spec, LITE, ROWS, Store(tmp_path / "empty"))) is None
    experiments = experiments_of(spec, LITE, ROWS)
    store = filled(
        tmp_path, experiments[: len(experiments) // 2], lambda one: {"accuracy": 0.6, "mse": 0.01 + one.train.noise_std}
    )
    for one in experiments[:3]:  # other information, so that there is something to fit
        leakage = {"identified": 0.5, "information": 50.0 + one.train.noise_std}
        store.write(one.key, result_of(one, 0.6, 0.02, leakage=leakage))
    found = collect(spec, LITE, ROWS, store)
    caption, svg = draw(spec, found)
    assert svg.startswith("<svg")
    assert caption.startswith(spec["title"])
    table = points_table(spec, found, ("a note",))
    assert len(table.rows) == sum(len(results) for _, results in found)
