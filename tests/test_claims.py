"""What README, docs and help may not say, because an audit contradicts it, and what they say as it was measured."""

import contextlib
import json
import re
from pathlib import Path

import pytest

from sfumato.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CITATION.cff", "mkdocs.yml", "pyproject.toml", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/examples").glob("*.py")),
    *sorted((ROOT / "docs/notebooks").glob("*.ipynb")),
    *sorted((ROOT / "src/sfumato/report/templates").glob("*.j2")),
]
COMMANDS = ("demo", "train", "attack", "audit", "tune", "reproduce", "export", "serve", "query", "bench")

# Every image can be reconstructed to some degree; how well is a number of an audit and never an absolute.
ABSOLUTE = re.compile(
    r"(cannot|can not|can never|can no longer) be (redrawn|reconstructed|inverted|recovered|recognised|identified)"
    r"|impossible (to|for) [\w\s]{0,30}(reconstruct|redraw|invert|recover|attack|identif)"
    r"|unbreakable|fully private|guaranteed private|leaks nothing|nothing leaks from"
    r"|at most can pass|can pass at most",
    re.I,
)
HONEST = "harder to reconstruct"


def absolutes(text: str) -> list[str]:
    return [found[0] for found in ABSOLUTE.finditer(" ".join(text.split()))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_promises_what_an_audit_contradicts(page):
    assert absolutes(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_no_help_promises_it_either(command, capsys):
    with contextlib.suppress(SystemExit):
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert "sfumato" in text
    assert absolutes(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "features that cannot be\nredrawn",
        "It is impossible for anybody to reconstruct them.",
        "an unbreakable code",
        "3 nats at most can pass",
    ],
)
def test_the_rule_can_fail(text):
    assert absolutes(text)


def test_the_first_sentence_is_the_same_everywhere():
    for name in (
        "README.md",
        "docs/index.md",
        "CITATION.cff",
        "mkdocs.yml",
        "pyproject.toml",
        "src/sfumato/__init__.py",
    ):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert HONEST in text, name
        assert "features cannot be" not in text, name


def test_the_readme_shows_the_demo_as_it_was_measured():
    """Means by hand from `results/demo.json`, and the headline's effect from the same file."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- begin demo -->(.*?)<!-- end demo -->", readme, re.S)
    assert block is not None
    result = json.loads((ROOT / "results/demo.json").read_text(encoding="utf-8"))
    settings = {(row["defense"], row["noise_std"]) for row in result["rows"]}
    lines = [line for line in block[1].splitlines() if line.startswith("|")][2:]
    assert len(lines) == len(settings)
    for defense, noise in settings:
        own = [row for row in result["rows"] if (row["defense"], row["noise_std"]) == (defense, noise)]
        accuracy, error = (sum(row[name] for row in own) / len(own) for name in ("accuracy", "mse_test"))
        shown = [f"{100 * accuracy:.1f} ±", f"| {error:.4f} ±"]
        if all("identified" in row for row in own):
            shown.append(f"| {100 * sum(row['identified'] for row in own) / len(own):.1f} ±")
        assert any(all(part in line for part in shown) for line in lines), (defense, noise, shown)
    if compared := result.get("equal_accuracy"):
        effect = compared["error"]["effect"]
        assert f"{effect:.2f} times" in block[1] or f"{effect:.1f} times" in block[1]
        assert f"{100 * compared['identified']['value']:.1f} % of cases" in block[1]
