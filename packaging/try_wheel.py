"""Installs a wheel in an empty environment and uses it there: `python packaging/try_wheel.py dist/sfumato-*.whl`.

With `--demo` it runs the whole `sfumato demo`, minutes; otherwise a short training and an attack. Nothing of this
repository is on the path: the commands run in an empty folder, in Python's isolated mode.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

SHORT = (
    ("train", "--data", "digits", "--cem", "--noise-std", "0.1", "--epochs", "3", "--run", "runs/first"),
    ("attack", "runs/first", "--attack", "ridge"),
)
DEMO = (("demo",),)
# Types for users' own type checkers, the embedded data, and every file that commands read from the package.
CHECK = """
import json, sys
from importlib.resources import files
import sfumato
root = files("sfumato")
assert root.joinpath("py.typed").is_file(), "py.typed is missing"
assert "site-packages" in sfumato.__file__, sfumato.__file__
from sfumato import data
assert len(data.load("digits").train) == 1438
import torch
print(json.dumps({"sfumato": sfumato.__version__, "torch": torch.__version__, "python": sys.version.split()[0]}))
"""


def main() -> int:
    """Install, check, run; prints what each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--demo", action="store_true", help="run the whole demo")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        bin_folder = place / "venv" / ("Scripts" if os.name == "nt" else "bin")
        _timed("environment", lambda: venv.create(place / "venv", with_pip=True))
        python = str(bin_folder / "python")
        _timed("install", lambda: _run(place, python, "-m", "pip", "install", "--quiet", str(parsed.wheel.resolve())))
        versions = _run(place, python, "-I", "-c", CHECK)
        sys.stdout.write(f"{json.loads(versions)}\n")
        for words in DEMO if parsed.demo else SHORT:
            _timed(" ".join(words[:2]), lambda words=words: _run(place, str(bin_folder / "sfumato"), *words))
    return 0


def _run(place: Path, *words: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(words, cwd=place, env=clean, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words[:4])} failed with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def _timed(what: str, work: object) -> None:
    began = time.monotonic()
    work()  # type: ignore[operator]
    sys.stdout.write(f"{what}: {time.monotonic() - began:.0f} s\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
