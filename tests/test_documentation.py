"""What the pages say is what the code does."""

import ast
import inspect
import re
import runpy
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from doc_blocks import blocks
from sfumato import attacks, defenses, paper
from sfumato.cli.commands import COMMANDS, parser_of
from sfumato.cli.parser import first_sentence, given
from sfumato.defenses import Batch, Site
from sfumato.errors import ConfigError
from sfumato.studies import EXECUTORS
from sfumato.studies.plan import budget_names, experiments_of, load_budget, load_rows, load_spec, paper_names, seeds_of
from sfumato.training import TrainConfig, train_run

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
EXAMPLE = ROOT / "docs/examples/feature_tv.py"


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def fenced(text: str, language: str = "") -> list[str]:
    """The blocks between ``` of one language."""
    return [block.body for block in blocks(text) if block.language == language]


def commands(text: str) -> list[str]:
    """Whole command lines: those in blocks, and those in running text that name more than the command."""
    lines = [line for block in fenced(text) for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    lines += [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", prose)]
    lines = [re.sub(r"^torchrun .* -- (?:sfumato|sfumato\.cli\.main) ", "sfumato ", line) for line in lines]
    return [line for line in lines if re.match(r"sfumato [a-z]+ .", line)]


@pytest.fixture(scope="module")
def _example():
    defenses.load_plugin(EXAMPLE)


@pytest.mark.filterwarnings("ignore::sfumato.errors.SfumatoWarning")  # a short training may deserve one
def test_the_readme_example_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = fenced((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.count("mixture fit") == 3


@pytest.mark.filterwarnings("ignore::sfumato.errors.SfumatoWarning")  # a short training may deserve one
def test_the_first_link_of_the_readme_is_the_method_and_runs(capsys):
    name = re.search(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))[1]
    assert name == "docs/examples/method.py"
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 110
    found = runpy.run_path(str(ROOT / name))
    assert found["accuracy"] > 0.8
    assert found["error"] < found["guess"]
    assert 0 < found["certificate"] < 1
    assert capsys.readouterr().out.count("\n") == 5


def test_the_tables_are_those_of_the_results():
    done = subprocess.run([sys.executable, "docs/render.py", "--check"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_that_a_page_names_exist(path):
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", path.read_text(encoding="utf-8"))
    missing = [file for file in named if not any((ROOT / top / file).exists() for top in (".", "src/sfumato", "docs"))]
    assert missing == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), f"{path.name} -> {target}"
        assert not anchor or anchor in _anchors(there.read_text(encoding="utf-8")), f"{path.name} -> {target}"


def _anchors(text: str) -> list[str]:
    """The headings, as links to them are written."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_blocks_are_python(path):
    for block in fenced(path.read_text(encoding="utf-8"), "python"):
        ast.parse(block)


@pytest.mark.usefixtures("_example")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_command_lines_are_understood(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for line in commands(path.read_text(encoding="utf-8")):
        _, command, *words = shlex.split(line, comments=True)
        assert command in COMMANDS, line
        try:
            parsed = parser_of(command).read(words)
            _check_values(command, parsed)
        except ConfigError as error:
            pytest.fail(f"{path.name}: {line}: {error}")


def _check_values(command: str, parsed: Any) -> None:
    """What is checked only when a command runs."""
    for plugin in getattr(parsed, "plugin", None) or []:
        assert Path(plugin).exists()
    if command == "train":
        TrainConfig(**defenses.expand(given(parsed, TrainConfig)))
    elif command == "attack":
        attacks.config_from_dict(parsed.attack, given(parsed, attacks.ATTACKS[parsed.attack].config))
    elif command == "reproduce":
        names = paper_names() if "all" in parsed.names else parsed.names
        budget = load_budget(parsed.budget, as_published=parsed.as_published, as_printed=parsed.as_printed)
        rows = load_rows()
        for name in names:
            if parsed.rows and not parsed.plugin:
                experiments_of(load_spec(name), budget, rows, wanted=parsed.rows)
            load_spec(name)
        assert all(set(parsed.seeds or []) <= set(seeds_of(load_spec(name), budget)) for name in names)
        executor = EXECUTORS["local" if parsed.executor == "auto" else parsed.executor]
        assert set(parsed.executor_options or {}) <= set(inspect.signature(executor).parameters)


def test_a_wrong_command_line_would_be_found():
    assert commands("see `sfumato train\n--cem` and\n```\nsfumato attack a \\\n  b\nsfumato.CEM\n```\n") == [
        "sfumato attack a    b",
        "sfumato train --cem",
    ]
    with pytest.raises(ConfigError, match="unknown option --lamda"):
        parser_of("train").read(["--lamda", "3"])
    with pytest.raises(ConfigError, match="unknown table"):
        _check_values("reproduce", parser_of("reproduce").read(["table11"]))


def test_options_in_running_text_exist():
    known = {
        name for command in COMMANDS for one in parser_of(command).options().values() for name in one.option_strings
    }
    known |= {"--bf"}  # of the tests, `pytest --bf16`
    for path in PAGES:
        prose = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
        for code in re.findall(r"`([^`]+)`", prose):
            options = re.findall(r"(?<![\w-])--[a-z][a-z-]*", code)
            assert set(options) <= known, f"{path.name}: {code}"


def test_the_reference_of_the_command_line_has_every_option_with_its_text():
    text = page("cli.md")
    for command in COMMANDS:
        part = text[text.index(f"\n## sfumato {command}\n") :]
        part = part[: part.find("\n## sfumato ", 1)]
        parser = parser_of(command)
        assert parser.example in part
        for section in parser.sections:
            for one in section.actions:
                assert one.help, (command, one.dest)
                assert one.help.replace("|", "\\|") in part, (command, one.dest)
                assert first_sentence(one.help)[0].isupper() or "/" in one.help or "." in one.help.split()[0], one.help
                assert one.help.removesuffix(")").endswith("."), one.help


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_a_command_is_understood(command):
    assert commands(f"`{parser_of(command).example}`")
    parsed = parser_of(command).read(shlex.split(parser_of(command).example)[2:])
    _check_values(command, parsed)
    assert len(parser_of(command).format_help().splitlines()) <= 60


def test_the_page_of_a_budget_says_what_the_budget_is():
    text = page("reproduce.md")
    for name in budget_names():
        budget = load_budget(name)
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        lam = budget.lam
        assert f"| {lam['sixteen_is']:g}, `{lam['scaling']}`, schedule `{lam['schedule']}` |" in line
        for value in (budget.settings.get("limit"), budget.settings["epochs"]):
            assert value is None or f"{value:,}" in line
    for name in load_rows():
        assert f"`{name}`" in text


def test_every_defence_is_in_the_table_with_its_defaults():
    text = page("defences.md")
    for name in load_rows():
        assert f"\n| `{name}` |" in text
    own = [name for name in defenses.names() if defenses.version(name) is None]
    assert len(own) >= 5
    for name in own:
        (line,) = [line for line in text.splitlines() if f"| `--defense {name}` |" in line]
        stated = dict(re.findall(r"(\w+) = ([\d.]+)", line))
        known = inspect.signature(type(defenses.build(name)))
        assert stated, line
        for option, value in stated.items():
            assert known.parameters[option].default == float(value), line
        if name != "patrol":  # which refers to ResSFL for the rest
            assert set(stated) == set(known.parameters)


def test_every_oddity_of_the_published_tables_is_listed():
    text = " ".join(page("deviations.md").split())
    for clauses in paper.ODDITIES.values():
        for clause in clauses:
            assert clause in text
    for table, gains in paper.STATED_GAINS.items():
        (line,) = re.findall(rf"\| {table} \| .*? \|\n", page("deviations.md"))
        cells = [cell.strip() for cell in line.split("|")[2:-1]]
        assert [cells[1], cells[3]] == [f"{100 * gains[part]:.1f} %" for part in ("train", "test")]


def test_the_page_shows_the_example_itself():
    assert EXAMPLE.read_text(encoding="utf-8") in fenced(page("defences.md"), "python")


def test_the_attack_of_the_page_attacks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests/attacks"))
    cases = import_module("attack_cases")
    (block,) = [block for block in fenced(page("attacks.md"), "python") if "class MeanAttack" in block]
    monkeypatch.setattr(attacks.registry, "ATTACKS", table := dict(attacks.ATTACKS))
    monkeypatch.setattr(attacks, "ATTACKS", table)
    names: dict[str, Any] = {}
    exec(block, names)
    attack = attacks.build(names["MeanConfig"]()).fit(cases.observer())
    unseen = cases.images(50, seed=1)
    found = attacks.invert(attack, cases.victim(), unseen)
    assert float(found.mse.mean()) == pytest.approx(float((unseen.float() - attack.mean).square().mean()), rel=1e-5)


def test_every_attack_is_on_its_page():
    for name in attacks.ATTACKS:
        assert f"| `{name}` |" in page("attacks.md")
        assert f"**`{name}`**" in page("attacks.md")


@pytest.mark.usefixtures("_example")
class TestTheExample:
    def test_its_penalty_is_the_formula_of_its_docstring(self):
        z = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
        down, across, spread = [], [], []
        for n in range(3):
            for c in range(2):
                mean = sum(z[:, c].flatten().tolist()) / z[:, c].numel()
                for i in range(4):
                    for j in range(5):
                        spread.append(abs(float(z[n, c, i, j]) - mean))
                        if i < 3:
                            down.append(abs(float(z[n, c, i + 1, j] - z[n, c, i, j])))
                        if j < 4:
                            across.append(abs(float(z[n, c, i, j + 1] - z[n, c, i, j])))
        variation = (sum(down) / len(down) + sum(across) / len(across)) / 2
        one = defenses.build("feature_tv", alpha=0.3)
        assert float(one.penalty(_batch(z))) == pytest.approx(0.3 * variation / (sum(spread) / len(spread)), rel=1e-5)
        assert float(one.penalty(_batch(1e-3 * z + 0.5))) == pytest.approx(float(one.penalty(_batch(z))), rel=1e-3)
        assert float(one.penalty(_batch(torch.ones(2, 3, 4, 4)))) == 0.0
        noise = torch.randn(50, 2, 32, 32, generator=torch.Generator().manual_seed(1))
        assert float(one.penalty(_batch(noise))) / 0.3 == pytest.approx(1.41, abs=0.01)

    def test_following_its_gradient_makes_the_map_smoother(self):
        z = torch.rand(8, 2, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        one = defenses.build("feature_tv", alpha=1.0)
        before = _roughness(z.detach())
        for _ in range(20):
            (gradient,) = torch.autograd.grad(one.penalty(_batch(z)), z)
            z = (z - 100 * gradient).detach().requires_grad_()
        assert _roughness(z.detach()) < 0.8 * before

    def test_it_passes_the_contract_as_the_page_says(self, monkeypatch):
        monkeypatch.syspath_prepend(str(ROOT / "tests/defenses"))
        monkeypatch.chdir(ROOT)
        contract = import_module("test_contract")
        table: dict[str, Any] = {}
        (snippet,) = [block for block in fenced(page("defences.md"), "python") if "SINGLE" in block]
        exec(snippet, {"SINGLE": table})
        for check in (
            contract.test_it_says_truly_what_it_does,
            contract.test_penalties_are_finite_scalars_that_reach_the_encoder,
            contract.test_classifier_and_attacker_get_the_same_feature,
            contract.test_reports_are_plain_values,
        ):
            check(table["feature_tv"]())

    def test_it_trains_with_cem(self, tmp_path):
        config = TrainConfig(
            width=8, limit=120, test_limit=30, epochs=2, batch_size=54, clusters_per_class=1, noise_std=0.1, cem=True,
            defense="feature_tv", device="cpu",
        )  # fmt: skip
        assert 0 <= train_run(config, tmp_path)["accuracy"] <= 1

    def test_its_mistakes_get_a_sentence(self):
        with pytest.raises(ConfigError, match="reward detail"):
            defenses.build("feature_tv", alpha=-1.0)
        with pytest.raises(ConfigError, match=r"needs a feature map, not \(512,\); cut the network earlier"):
            defenses.build("feature_tv").attach(Site((512,), (3, 32, 32), 10))


def _batch(features: torch.Tensor) -> Batch:
    nothing = torch.zeros(len(features), dtype=torch.int64)
    return Batch(features, nothing, features, features, features.flatten(1))


def _roughness(z: torch.Tensor) -> float:
    """Squared neighbour differences over the variance: another measure than the penalty's own."""
    return float((z.diff(dim=2).square().mean() + z.diff(dim=3).square().mean()) / z.var())
