"""Work for the executors' tests, importable in their workers. An item is (folder, name); every start leaves a file.

Without torch at the top, whose import takes a worker seconds.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from sfumato.errors import DataError

Item = tuple[str, str]


def run(executor, items, work, stop=None):
    """All outcomes, and the end of the workers."""
    with executor:
        yield from executor.run(items, work, stop=stop)


def starts(folder: str | Path, name: str) -> list[Path]:
    return sorted(Path(folder).glob(f"{name}.start-*"))


def begin(folder: str, name: str) -> int:
    """Leave a file with this process's number, and say how many starts there were before."""
    before = len(starts(folder, name))
    (Path(folder) / f"{name}.start-{before}").write_text(str(os.getpid()))
    return before


def wait_for(path: Path, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


def lives(number: str) -> bool:
    """Whether that process is there and no zombie; one whose threads are still ending (`Zl`) is there."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", number], capture_output=True, text=True).stdout.strip()
    return state != "" and not (state.startswith("Z") and "l" not in state)


def wait_for_end(number: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while lives(number):
        assert time.monotonic() < deadline, f"process {number} is still there"
        time.sleep(0.05)


class Odd(Exception):
    """Cannot be rebuilt from its arguments, as many exceptions of other packages."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


def act(item: Item) -> object:
    folder, name = item
    before = begin(folder, name)
    if name == "fails":
        raise DataError("the set is empty; give another one")
    if name == "fails oddly":
        raise Odd(7, "strange")
    if name == "dies once" and before == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "dies always":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "exits":
        sys.exit(5)
    if name == "gives a function":
        return lambda: None
    if name == "imports":
        return "torch" in sys.modules
    if name == "threads":
        import torch

        return torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    return name.upper()


def rest(item: Item) -> str:
    """Run for a moment."""
    folder, name = item
    begin(folder, name)
    time.sleep(0.2)
    return name


def linger(item: Item) -> str:
    """`long` never ends by itself; `short` ends once `long` runs."""
    folder, name = item
    begin(folder, name)
    if name == "long":
        time.sleep(120)
    wait_for(Path(folder) / "long.start-0")
    return name


def until_node_is_killed(item: Item) -> str:
    """Say where it ran; end only after the test has killed a node."""
    import ray

    folder, name = item
    before = begin(folder, name)
    node: str = ray.get_runtime_context().get_node_id()
    (Path(folder) / f"{name}.node-{before}").write_text(node)
    wait_for(Path(folder) / "killed")
    return node


def pid(_: int) -> int:
    """The process that does the work."""
    return os.getpid()
