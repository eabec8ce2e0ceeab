"""From the store to what people read."""

import torch
from experiment_data import filled

from sfumato.studies.engine import Store
from sfumato.studies.experiment import write_strip
from sfumato.studies.plan import experiments_of, load_budget, load_rows, load_spec
from sfumato.studies.presentation import present, save

ROWS, LITE, TABLE1 = load_rows(), load_budget("lite"), load_spec("table1")


def test_pictures_of_one_test_set_stand_together_and_others_stay_out(tmp_path, monkeypatch):
    experiments = [one for one in experiments_of(TABLE1, LITE, ROWS, seeds=[0]) if one.row in ("none", "bottleneck")]
    store = filled(tmp_path, experiments, lambda one: {"accuracy": 0.5, "mse": 0.01})
    generator = torch.Generator().manual_seed(0)
    originals = torch.randint(0, 256, (2, 3, 8, 8), generator=generator).float() / 255
    for number, one in enumerate(experiments):
        own = originals if number < 2 else 1 - originals
        write_strip(store.folder / f"{one.key}.png", {"original": own, "decoder": own, "gan": own})
    seen = {}
    monkeypatch.setattr(
        "sfumato.studies.presentation.labelled_rows", lambda rows: seen.update(rows) or b"\x89PNG\r\n\x1a\n"
    )
    present(TABLE1, LITE, ROWS, store)
    assert torch.equal(seen.pop("original"), originals)
    assert list(seen) == [
        "no defence\ndecoder, MSE 0.0100",
        "no defence\ngan, MSE 0.0100",
        "Bottleneck\ndecoder, MSE 0.0100",
        "Bottleneck\ngan, MSE 0.0100",
    ]


def test_files_for_people_and_programs(tmp_path):
    store = filled(
        tmp_path / "store",
        experiments_of(TABLE1, LITE, ROWS, seeds=[0]),
        lambda one: {"accuracy": 0.5, "mse": 0.01},
    )
    paths = save(present(TABLE1, LITE, ROWS, store), tmp_path / "out", LITE)
    assert {path.name for path in paths} == {f"table1-lite.{suffix}" for suffix in ("md", "csv", "tex", "html")}
    page = (tmp_path / "out" / "table1-lite.html").read_text()
    assert "a machine" in page  # the device of the results, not of this process
    assert "http" not in page.replace("http://www.w3.org", "")


def test_nothing_measured_gives_nothing_but_the_published_table(tmp_path):
    empty = Store(tmp_path)
    assert save(present(load_spec("fig5"), LITE, ROWS, empty), tmp_path / "out", LITE) == []
    assert save(present(load_spec("table9"), LITE, ROWS, empty), tmp_path / "out", LITE) == []
    assert present(TABLE1, LITE, ROWS, empty).tables[0].rows[0].cells[0].published == 0.9186
