"""The blocks of a Markdown page, and how they are executed.

- Python blocks run one after the other in one namespace, in an empty folder of the page's own.
- A Python block with a title (```python title="name.py") is a file: it is written there, for the blocks that follow.
- A shell block after `<!-- run -->` runs: lines with `sfumato` through the command line's own `main`, lines with
  `python FILE` as a script. A training that names no number of epochs has two.
- A block after `<!-- not run: reason -->` does not run.
- A Python block whose first line is `# extra: NAME` runs where that extra is installed.
"""

import contextlib
import copy
import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sfumato import attacks, defenses
from sfumato.cli.main import main
from sfumato.errors import SfumatoWarning

ROOT = Path(__file__).parents[1]
# The package by which one sees that an extra is installed.
EXTRAS = {"audit": "onnxruntime", "hf": "datasets", "lightning": "pytorch_lightning", "tensorboard": "tensorboard"}
_BLOCK = re.compile(r"(?:^<!-- ([^\n]*?) -->\n\n?)?^```([^\n]*)\n(.*?)^```$", re.S | re.M)


@dataclass(frozen=True)
class Block:
    """What stands between ``` and ```.

    Attributes:
        language: the first word behind the opening ```.
        title: name of the file that a block shows, or nothing.
        mark: text of the comment above it.
        body: the lines.
        line: where it begins in the page.
    """

    language: str
    title: str
    mark: str
    body: str
    line: int

    @property
    def left_out(self) -> bool:
        """Whether the page says why it does not run."""
        return bool(re.match(r"not run: \w.{10,}", self.mark))

    @property
    def extra(self) -> str:
        """The extra that it needs, or nothing."""
        found = re.match(r"# extra: (\w+)\n", self.body)
        return found[1] if found else ""

    @property
    def runs(self) -> bool:
        """Whether a test executes it."""
        if self.left_out or (self.extra and find_spec(EXTRAS[self.extra]) is None):
            return False
        return self.language == "python" or (self.language == "" and self.mark == "run")


def blocks(text: str) -> list[Block]:
    """All blocks of a page, in order."""
    found = []
    for match in _BLOCK.finditer(text):
        mark, info, body = match[1] or "", match[2], match[3]
        title = re.search(r'title="([^"]+)"', info)
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Block(info.split(" ")[0], title[1] if title else "", mark, body, line))
    return found


def run_page(name: str, page: list[Block], folder: Path) -> dict[str, Any]:
    """Execute the blocks of a page in `folder`, which is the working directory already; the namespace they leave."""
    names: dict[str, Any] = {"__name__": "page"}
    with _own_registries(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore", SfumatoWarning)  # short trainings deserve their warnings
        for block in page:
            if not block.runs:
                continue
            if block.title:
                (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
                (folder / block.title).write_text(block.body, encoding="utf-8")
            elif block.language == "python":
                # Padded, so that a traceback names the line of the page.
                exec(compile("\n" * block.line + block.body, name, "exec"), names)
            else:
                for line in block.body.replace("\\\n", " ").splitlines():
                    _run_line(line)
    return names


def _run_line(line: str) -> None:
    words = shlex.split(line, comments=True)
    if not words:
        return
    if words[0] == "sfumato":
        # What a page shows does not depend on how long a training was.
        short = ["--epochs", "2"] if words[1] == "train" and "--epochs" not in words else []
        code = main([*words[1:], *short])
        # A line may state the code that it ends with: `sfumato audit ...  # exit code 1`.
        stated = re.search(r"# exit code (\d)", line)
        assert code == (int(stated[1]) if stated else 0), f"{line}: exit code {code}"
    elif words[0] == "python":
        runpy.run_path(words[1], run_name="__main__")
    else:
        raise AssertionError(f"a block marked `run` has a line that tests cannot run: {line}")


@contextlib.contextmanager
def _own_registries(folder: Path) -> Iterator[None]:
    """What a page registers or imports is gone afterwards."""
    tables: list[dict[str, Any]] = [attacks.ATTACKS, defenses.registry._CLASSES, defenses.registry._VERSIONS]
    before = [copy.copy(table) for table in tables]
    path, modules = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            where = getattr(sys.modules[name], "__file__", None)
            if where is not None and str(where).startswith(str(folder)):
                del sys.modules[name]
        for table, old in zip(tables, before, strict=True):
            table.clear()
            table.update(old)
