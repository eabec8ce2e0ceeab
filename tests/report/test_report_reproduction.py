import pytest
import torch
from report_data import EVIDENCE, check_self_contained

from sfumato.errors import ConfigError
from sfumato.report.chart import Curve, Point
from sfumato.report.figures import entropy_scatter, trade_off
from sfumato.report.pictures import labelled_rows
from sfumato.report.reproduction import Presentation, write_reproduction_page
from sfumato.report.tables import Cell, Row, Table

EVIL = "<script>alert('x')</script>&\"$x_1"


def table(title: str = "Table 1: CIFAR-10", label: str = "Noise_ARL", columns: int = 1) -> Table:
    names = tuple(f"MSE {number}" for number in range(columns))
    return Table(title, names, (Row(label, (Cell(0.0295, 0.0004, 0.0336),) * columns),), ("Budget lite.",))


def figure(key: str) -> str:
    return trade_off([Curve("noise_arl", (Point(0.01, 0.6),))], key=key)


def scatter(key: str) -> str:
    return entropy_scatter([Curve("noise_arl+cem", (Point(1.0, 0.01),))], key=key)


def png() -> bytes:
    x = torch.linspace(0, 1, 2 * 64).reshape(2, 1, 8, 8)
    return labelled_rows({"original": x, "decoder": x.flip(0)})


def written(tmp_path, **parts):
    path = tmp_path / "deep" / "report.html"
    values = {"title": "Table 1 at budget lite", "evidence": EVIDENCE, "seconds": 1432.4} | parts
    write_reproduction_page(path, Presentation("table1", **values))
    return path.read_text(encoding="utf-8")


def everything(tmp_path):
    return written(
        tmp_path,
        tables=[table(), table("Table 2: TinyImageNet", columns=5)],
        figures=[("Figure 4a: cost\nEach point is a model.", figure("a")), ("Figure 3", scatter("b"))],
        pictures=[("Figure 5: redrawn\nUnseen images.", png())],
        notes=["24 of 30 experiments are done."],
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a page that has everything, and the page."""
    folder = tmp_path_factory.mktemp("whole")
    return folder / "deep", everything(folder)


def test_the_page_needs_nothing_else_and_has_everything(whole):
    page = check_self_contained(whole[1])
    for text in (
        "Table 1 at budget lite 24 of 30 experiments are done.",
        "Noise_ARL 0.0295 ± 0.0004 0.0336 Budget lite.",
        "Table 2: TinyImageNet",
        "Noise_ARL: MSE 0.0100, accuracy 60.0 %",
        "Noise_ARL + CEM: H 1, MSE 0.0100",
        "Each point is a model.",
        "Unseen images.",
        "An attack that fails proves nothing about a better one.",
        "at equal accuracy",
        "1432 s",
        "abc1234",
    ):
        assert text in page.text, text
    assert len(page.named("table")) == 2
    (image,) = page.named("img")
    assert image["alt"] == "Figure 5: redrawn. Unseen images."
    assert {name for name, _ in page.tags} >= {"svg", "figcaption"}


def test_only_broad_tables_leave_the_column(whole):
    narrow, broad = whole[1].split("<section")[1:3]
    assert 'class="wide"' not in narrow
    assert 'class="wide"' in broad


def test_contents_lead_to_every_part_of_a_long_page(tmp_path, whole):
    page = check_self_contained(whole[1])
    targets = [link["href"] for link in page.named("a")]
    assert targets == [f"#part-{number}" for number in range(1, 7)]
    assert [f"#{section['id']}" for section in page.named("section")] == targets
    assert not check_self_contained(written(tmp_path, tables=[table()])).named("a")


def test_the_title_stands_once(tmp_path):
    page = check_self_contained(written(tmp_path, title="Figure 4a, budget lite", tables=[table("Figure 4a")]))
    assert page.text.count("Figure 4a") == 1
    assert "The numbers" in page.text


def test_figures_and_pictures_lie_beside_the_page_for_a_paper(whole):
    files = sorted(path.name for path in whole[0].iterdir())
    figures = [f"report-figure{number}.{end}" for number in (1, 2) for end in ("csv", "pdf", "svg")]
    assert files == [*figures, "report-figure3.pdf", "report-figure3.png", "report.html"]


def test_a_page_of_pictures_alone_says_nothing_about_published_figures(tmp_path):
    text = check_self_contained(written(tmp_path, pictures=[("Figure 5", png())])).text
    assert "published figure" not in text
    assert "Fresh noise averages away." in text


def test_markup_in_names_and_notes_stays_text(tmp_path):
    source = written(
        tmp_path,
        title=f"Page {EVIL}",  # a part of the page's own name would lose its heading
        tables=[table(EVIL, EVIL)] * 2,
        figures=[(f"{EVIL}\n{EVIL}", figure("a"))],
        pictures=[(f"{EVIL}\n{EVIL}", png())],
        notes=[EVIL],
        evidence=EVIDENCE | {"device": EVIL, "<b>": 1},
    )
    page = check_self_contained(source)
    assert "<script" not in source
    assert "<b>1" not in source
    assert page.text.count(EVIL) == 11
    assert page.named("img")[0]["alt"] == f"{EVIL}. {EVIL}"


def test_the_same_input_gives_the_same_bytes(tmp_path, whole):
    assert everything(tmp_path) == whole[1]


def test_bad_input_is_refused(tmp_path):
    for parts, message in (
        ({}, "neither a table nor a figure; run an experiment"),
        ({"figures": [("a", figure("x")), ("b", scatter("x"))]}, "same key; draw each with a key of its own"),
        ({"pictures": [("Figure 5\nmore", b"GIF89a")]}, "the picture 'Figure 5' is no PNG"),
    ):
        with pytest.raises(ConfigError, match=message):
            written(tmp_path, **parts)
    assert list(tmp_path.iterdir()) == []
