"""Executes notebooks without Jupyter and writes their outputs into them: `python docs/run_notebook.py FILE.ipynb ...`.

A cell's output is what it prints, the value of its last expression, and the figures that it leaves open, as in Jupyter
with inline figures. Magics and widgets do not exist here.
"""

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from sfumato.files import write_text

Notebook = dict[str, Any]


def execute(notebook: Notebook, name: str = "notebook") -> Notebook:
    """The notebook with the outputs of all its code cells, run from top to bottom in the working directory.

    Raises:
        Exception: whatever a cell raises; the traceback names the notebook and the number of the cell.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            cells.append(cell)
            continue
        count += 1
        outputs = _run("".join(cell["source"]), f"{name}, cell {count}", names, count)
        cells.append(cell | {"execution_count": count, "outputs": outputs})
    return notebook | {"cells": cells}


def _run(source: str, name: str, names: dict[str, Any], count: int) -> list[dict[str, Any]]:
    tree = ast.parse(source)
    last = tree.body[-1] if tree.body else None
    # A trailing semicolon hides the last value, as in Jupyter.
    value = tree.body.pop() if isinstance(last, ast.Expr) and not source.rstrip().endswith(";") else None
    printed, shown = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, name, "exec"), names)
        if isinstance(value, ast.Expr):
            shown = eval(compile(ast.Expression(value.value), name, "eval"), names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": _lines(printed.getvalue())})
    if shown is not None:
        data = {"text/plain": _lines(repr(shown))}
        outputs.append({"data": data, "execution_count": count, "metadata": {}, "output_type": "execute_result"})
    for number in plt.get_fignums():
        stream = io.BytesIO()
        plt.figure(number).savefig(stream, format="png", dpi=80)
        png = base64.b64encode(stream.getvalue()).decode("ascii") + "\n"
        data = {"image/png": png, "text/plain": ["<Figure>"]}
        outputs.append({"data": data, "metadata": {}, "output_type": "display_data"})
    plt.close("all")
    return outputs


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def dump(notebook: Notebook) -> str:
    """As Jupyter writes it."""
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> int:
    """Run the notebooks that the command line names, each in an empty folder."""
    home = Path.cwd()
    for path in [(home / word).resolve() for word in sys.argv[1:]]:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                done = execute(notebook, path.name)
            finally:
                os.chdir(home)
        write_text(path, dump(done))
    return 0


if __name__ == "__main__":
    sys.exit(main())
