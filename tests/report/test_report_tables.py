import csv
import io
import math

import pytest
from report_data import Page

from sfumato.errors import ConfigError
from sfumato.report import page
from sfumato.report.tables import Cell, Row, Table, to_csv, to_latex, to_markdown

NASTY = '<script>a|b</script> & $x_1$ {50%} #~^\\ *_[y](z)_* `q` "é"\nλ'


def share(ours: float | None, spread: float | None = None, published: float | None = None) -> Cell:
    return Cell(ours, spread, published, percent=True)


def example() -> Table:
    return Table(
        "Table 1: CIFAR-10",
        ("accuracy", "MSE, unseen", "gain"),
        (
            Row("Noise_ARL", (share(0.5512, 0.0123, 0.8778), Cell(0.02949, 0.0004, 0.0336), Cell(digits=2)), "3 seeds"),
            Row(
                "Noise_ARL + CEM",
                (share(0.56), Cell(0.00001234, 0.000001, 0.0355, note="not converged"), Cell(1.234, digits=2)),
            ),
            Row("mine", (share(None), Cell(), Cell(text="no curve")), emphasis=True),
        ),
        ("Budget lite.", "Seeds 0 to 2."),
    )


def test_markdown_by_hand():
    assert to_markdown(example()) == (
        "### Table 1: CIFAR-10\n"
        "\n"
        "| method | accuracy, % | published | MSE, unseen | published | gain |\n"
        "| :--- | ---: | ---: | ---: | ---: | ---: |\n"
        "| Noise_ARL (3 seeds) | 55.12 ± 1.23 | 87.78 | 0.0295 ± 0.0004 | 0.0336 | – |\n"
        "| Noise_ARL + CEM | 56.00 | – | 0.0000123 ± 0.0000010 (not converged) | 0.0355 | 1.23 |\n"
        "| **mine** | **–** | **–** | **–** | **–** | **no curve** |\n"
        "\n"
        "- Budget lite.\n"
        "- Seeds 0 to 2.\n"
    )


def test_csv_read_back_gives_the_numbers_unrounded():
    lines = list(csv.DictReader(io.StringIO(to_csv(example()))))
    assert list(lines[0]) == [
        *("method", "accuracy", "accuracy sd", "accuracy published"),
        *("MSE, unseen", "MSE, unseen sd", "MSE, unseen published"),
        *("gain", "note", "table", "table notes"),
    ]
    first, second, third = lines
    assert [float(first[name]) for name in ("accuracy", "accuracy sd", "accuracy published")] == [
        0.5512,
        0.0123,
        0.8778,
    ]
    assert [float(second[f"MSE, unseen{end}"]) for end in ("", " sd", " published")] == [0.00001234, 0.000001, 0.0355]
    assert (second["accuracy sd"], second["accuracy published"], second["gain"]) == ("", "", "1.234")
    assert (third["accuracy"], third["gain"], third["note"]) == ("", "no curve", "")
    assert (first["note"], second["note"]) == ("3 seeds", "MSE, unseen: not converged")
    assert {line["table notes"] for line in lines} == {"Budget lite. Seeds 0 to 2."}
    assert {line["table"] for line in lines} == {"Table 1: CIFAR-10"}


def test_latex_by_hand():
    assert to_latex(example()).splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{Table 1: CIFAR-10}",
        r"\begin{tabular}{lrrrrr}",
        r"\toprule",
        r"method & \multicolumn{2}{c}{accuracy, \%} & \multicolumn{2}{c}{MSE, unseen} & gain \\",
        r"\cmidrule(lr){2-3} \cmidrule(lr){4-5}",
        r" & ours & published & ours & published &  \\",
        r"\midrule",
        r"Noise\_ARL (3 seeds) & 55.12 $\pm$ 1.23 & 87.78 & 0.0295 $\pm$ 0.0004 & 0.0336 & -- \\",
        r"Noise\_ARL + CEM & 56.00 & -- & 0.0000123 $\pm$ 0.0000010 (not converged) & 0.0355 & 1.23 \\",
        r"\textbf{mine} & \textbf{--} & \textbf{--} & \textbf{--} & \textbf{--} & \textbf{no curve} \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip\footnotesize Budget lite. Seeds 0 to 2.",
        r"\end{table}",
    ]


def test_a_page_has_every_figure_with_its_head():
    source = Page(str(page.table(example())))
    assert source.text == (
        "method accuracy, % published MSE, unseen published gain "
        "Noise_ARL 3 seeds 55.12 ± 1.23 87.78 0.0295 ± 0.0004 0.0336 – "
        "Noise_ARL + CEM 56.00 – 0.0000123 ± 0.0000010 not converged 0.0355 1.23 "
        "mine – – – – no curve Budget lite. Seeds 0 to 2."
    )
    assert source.named("table") == [{"class": "cards", "aria-label": "Table 1: CIFAR-10"}]
    assert [row.get("class") for row in source.named("tr")] == [None] * 3 + ["best"]
    heads = [cell["data-head"] for cell in source.named("td")]  # on a narrow page each cell shows its own
    assert heads == ["accuracy, %", "accuracy, %, published", "MSE, unseen", "MSE, unseen, published", "gain"] * 3


def nasty() -> Table:
    return Table(NASTY, (NASTY,), (Row(NASTY, (Cell(text=NASTY, published=1.0, note=NASTY),), NASTY),), (NASTY,), NASTY)


def test_names_are_never_markup_in_html():
    source = Page(str(page.table(nasty())))
    assert {"script", "a", "b"}.isdisjoint(tag for tag, _ in source.tags)
    assert source.text.count(" ".join(NASTY.split())) == 7  # corner, head, label, its note, cell, its note, below
    assert source.named("table")[0]["aria-label"] == NASTY
    assert source.named("td")[0]["data-head"] == NASTY


def test_names_are_never_markup_in_markdown():
    text = to_markdown(nasty())
    escaped = r"&lt;script>a\|b&lt;/script> &amp; \$x_1\$ {50%} \#\~^\\ \*\_\[y\](z)\_\* \`q\` " + '"é" λ'
    assert text.splitlines()[0] == f"### {escaped}"
    assert text.splitlines()[4] == f"| {escaped} ({escaped}) | {escaped} ({escaped}) | 1.0000 |"
    assert text.splitlines()[6] == f"- {escaped}"


def test_names_are_never_commands_in_latex():
    text = to_latex(nasty())
    escaped = (
        r"\textless{}script\textgreater{}a\textbar{}b\textless{}/script\textgreater{} \& \$x\_1\$ \{50\%\} "
        r"\#\textasciitilde{}\textasciicircum{}\textbackslash{} *\_{[}y{]}(z)\_* `q` ''é'' $\lambda$"
    )
    assert rf"\caption{{{escaped}}}" in text
    assert rf"{escaped} ({escaped}) & {escaped} ({escaped}) & 1.0000 \\" in text.splitlines()


def test_names_survive_csv():
    (line,) = csv.DictReader(io.StringIO(to_csv(nasty()), newline=""))
    assert line[NASTY] == NASTY
    assert line["table"] == NASTY
    assert line["note"] == f"{NASTY}; {NASTY}: {NASTY}"


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        (Cell(0.0), "0.0000"),
        (Cell(0.00005), "0.0001"),
        (Cell(0.000049), "0.0000490"),
        (Cell(0.00000099), "0.000000990"),
        (Cell(-4.2e-17), "−4.2·10⁻¹⁷"),  # twelve zeros would say nothing
        (Cell(-0.25, digits=2), "−0.25"),
        (Cell(math.inf), "∞"),
        (Cell(math.nan), "nan"),
        (Cell(0.91864, percent=True), "91.86"),
        (Cell(0.00004, percent=True), "0.00400"),
        (Cell(0.5, text="pruned"), "pruned"),
        (Cell(711539.0, digits=0), "711539"),
    ],
)
def test_how_a_figure_is_written(cell, shown):
    assert cell.shown == shown
    assert cell.shown_spread == ""
    assert cell.shown_published == "–"


def test_published_keeps_its_digits_beside_a_tiny_one_of_ours():
    cell = Cell(0.00001, 0.0, 0.0007)
    assert (cell.shown, cell.shown_spread, cell.shown_published) == ("0.0000100", "± 0.0000000", "0.0007")


def test_a_table_without_published_figures_has_no_place_for_them():
    table = Table("t", ("a",), (Row("r", (Cell(1.0),)),))
    assert to_markdown(table).splitlines()[2:] == ["| method | a |", "| :--- | ---: |", "| r | 1.0000 |"]
    assert r"\cmidrule" not in to_latex(table)
    assert "published" not in page.table(table)
    assert to_csv(table).splitlines()[0] == "method,a,note,table,table notes"


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (("a",), (), "'t' has no rows; give at least one"),
        (("a", "a"), (Row("r", (Cell(), Cell())),), "two columns of one name; name each differently"),
        (("a", "b"), (Row("r", (Cell(),)),), "row 'r' of the table 't' has 1 cells for 2 columns; give one for each"),
        (("a",), (Row("r", (share(0.5),)), Row("s", (Cell(0.5),))), "column 'a' of the table 't' mixes percentages"),
    ],
)
def test_bad_tables_are_refused(columns, rows, message):
    with pytest.raises(ConfigError, match=message):
        Table("t", columns, rows)
