"""Follows README.md's "Start here" in a fresh clone, line by line, and says how long each took.

`python packaging/try_readme.py [--skip WORD ...]` clones this repository into a temporary folder. Lines run in a shell,
as a reader would type them; the server is asked whether it is ready and then stopped. POSIX only.
"""

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_PATIENCE = 600.0


def lines() -> list[str]:
    """The commands of the block, without their comments."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^## Start here$.*?^```\n(.*?)^```$", text, re.S | re.M)
    return [line.partition("  #")[0].rstrip() for line in block.splitlines() if line.strip()]


def main() -> int:
    """Clone, follow, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skip", nargs="+", default=[], help="leave out lines with one of these words")
    skipped = parser.parse_args().skip
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "sfumato"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        typed: list[str] = []
        for line in lines():
            if set(skipped) & set(line.split()):
                sys.stdout.write(f"{'left out':>8}  {line}\n")
                continue
            started = time.monotonic()
            serves = line.startswith("sfumato serve")
            # What `source` did belongs to the shell, so it is repeated for every line.
            script = "\n".join(
                [*(old for old in typed if old.startswith("source ")), f"exec {line}" if serves else line]
            )
            if serves:
                _serve(script, clone, int(shlex.split(line)[-1]))
            else:
                subprocess.run(["bash", "-e", "-c", script], cwd=clone, check=True, stdout=subprocess.DEVNULL)
            typed.append(line)
            sys.stdout.write(f"{time.monotonic() - started:7.0f}s  {line}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{time.monotonic() - began:7.0f}s  altogether\n")
    return 0


def _serve(script: str, clone: Path, port: int) -> None:
    """Start the server, wait until it is ready, stop it."""
    with subprocess.Popen(["bash", "-c", script], cwd=clone, stderr=subprocess.DEVNULL) as server:
        try:
            end = time.monotonic() + _PATIENCE
            while not _ready(port):
                if server.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"the server did not come up: {script.splitlines()[-1]}")
                time.sleep(0.2)
        finally:
            server.terminate()
            server.wait(timeout=60)


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
