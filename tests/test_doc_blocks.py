"""Every block of code in the pages runs, or says why not."""

from importlib.util import find_spec

import pytest

from doc_blocks import ROOT, Block, blocks, run_page

PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
LANGUAGES = {"", "python", "json", "yaml", "text", "toml"}


# Pages whose blocks another test executes, with what these pages need.
ELSEWHERE = {
    "README.md": "test_documentation.py",
    "own-loop.md": "test_own_pages.py",
    "own-model.md": "test_own_pages.py",
    "watch.md": "test_own_pages.py",
}
RUN = [
    page
    for page in PAGES
    if page.name not in ELSEWHERE and any(block.runs for block in blocks(page.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize("path", [page for page in PAGES if page.name in ELSEWHERE], ids=lambda path: path.name)
def test_pages_left_to_other_tests_are_executed_there(path):
    assert f'"{path.name}"' in (ROOT / "tests" / ELSEWHERE[path.name]).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.name)
def test_the_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(path.name, blocks(path.read_text(encoding="utf-8")), tmp_path)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_blocks_are_marked_in_words_that_are_known(path):
    text = path.read_text(encoding="utf-8")
    found = blocks(text)
    assert 2 * len(found) == sum(line.startswith("```") for line in text.splitlines()), "a block is not seen"
    for block in found:
        where = f"{path.name}:{block.line}"
        assert block.language in LANGUAGES, f"{where}: {block.language}"
        allowed = block.runs or block.left_out or block.extra or block.language != "python"
        assert allowed, f"{where} neither runs nor says why"
        if block.mark.startswith(("run", "not run")):
            assert block.runs or block.left_out, f"{where}: write `run`, or `not run: ` and a reason"


def test_the_first_page_shows_the_block_of_the_readme():
    shown, tried = (
        [block.body for block in blocks((ROOT / name).read_text(encoding="utf-8")) if block.language == "python"]
        for name in ("docs/index.md", "README.md")
    )
    assert shown == tried


def test_marks_are_obeyed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = """# A page
```python title="one.py"
value = 3
```

```python
from one import value
found = value + 1
```

<!-- not run: it needs a network that nobody has -->
```python
found = 1 / 0
```

<!-- run -->
```
sfumato --version
sfumato trane  # exit code 2
```

```
sfumato serve nothing
```
"""
    assert run_page("page.md", blocks(page), tmp_path)["found"] == 4
    with pytest.raises(ZeroDivisionError):
        run_page("page.md", blocks(page.replace("not run: it", "it")), tmp_path)
    with pytest.raises(AssertionError, match="exit code 2"):
        run_page("page.md", blocks(page.replace("--version", "--verzion")), tmp_path)
    with pytest.raises(AssertionError, match="cannot run"):
        run_page("page.md", blocks(page.replace("sfumato --version", "rm x")), tmp_path)


def test_a_block_that_needs_an_extra_runs_where_it_is():
    assert Block("python", "", "", "# extra: audit\nimport onnxruntime\n", 1).runs == (
        find_spec("onnxruntime") is not None
    )
    block = Block("python", "", "", "# extra: nowhere\n", 1)
    assert block.extra == "nowhere"
    with pytest.raises(KeyError):
        assert block.runs


def test_a_reason_has_to_say_something():
    assert Block("python", "", "not run: it takes an hour", "", 1).left_out
    assert not Block("python", "", "not run: x", "", 1).left_out
