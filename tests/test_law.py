"""The law over everything that is stored: no attack names the image more often than its certificate allows."""

import json
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[1] / "results"


def leakages():
    """(name, identified, its standard error, certificate) of every stored measurement that has them."""
    for path in sorted(RESULTS.glob("*/*.json")):
        yield path.stem, json.loads(path.read_text(encoding="utf-8")).get("leakage")
    for key, row in json.loads((RESULTS / "defaults.json").read_text(encoding="utf-8"))["rows"].items():
        yield key, row.get("leakage")
    for row in json.loads((RESULTS / "protect.json").read_text(encoding="utf-8"))["rows"]:
        for line in row["shapes"]:
            yield f"{row['data']} {row['seed']} {line['name']}", line


def broken(found):
    return [
        name
        for name, line in found
        if line is not None
        and line.get("identified_at_most") is not None
        and line["identified"] > line["identified_at_most"] + 3 * line["identified_error"]
    ]


def test_nobody_is_identified_more_often_than_certified():
    found = list(leakages())
    assert sum(line is not None for _, line in found) > 80
    assert broken(found) == []


@pytest.mark.parametrize(("at_most", "wrong"), [(0.5, ["one"]), (0.96, []), (None, [])])
def test_the_law_can_be_broken(at_most, wrong):
    assert broken([("one", {"identified": 0.97, "identified_error": 0.01, "identified_at_most": at_most})]) == wrong
