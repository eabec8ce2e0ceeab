"""The command line as one of several processes: how they start, who prints, how they end together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from rank_tools import environment, free_port

from sfumato.cli.main import main
from sfumato.cli.stopping import until_stopped
from sfumato.distributed import joined, launched, may_tell
from sfumato.errors import ConfigError, Interrupted, RankLost

EPOCHS = 12
TRAIN = ["train", "--limit", "200", "--batch-size", "64", "--width", "6", "--epochs", str(EPOCHS), "--device", "cpu"]


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert path.exists()


def test_a_killed_rank_ends_all_with_one_sentence_and_the_same_command_goes_on(tmp_path):
    words = [*TRAIN, "--run", str(tmp_path / "run")]
    torchrun = subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
            "--master-port", str(free_port()), "-m", "--", "sfumato.cli.main", *words,
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for(tmp_path / "run/metrics.jsonl")  # written after the checkpoint of the same epoch
        children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
        os.kill(int(children[1]), signal.SIGKILL)
        _, errors = torchrun.communicate(timeout=60)
    finally:
        torchrun.kill()
    assert torchrun.returncode != 0
    said = [line for line in errors.splitlines() if line.startswith("sfumato:")]
    assert len(said) == 1  # torchrun kills after 30 seconds, without a word
    # The second one was seen once on a busy machine: the survivor never heard that the other side is gone.
    assert "another process of this training ended" in said[0] or "no step ended within" in said[0]
    assert said[0].endswith("the same command resumes from the last checkpoint")
    assert not (tmp_path / "run/result.json").exists()
    before = (tmp_path / "run/metrics.jsonl").read_text()

    assert main(words) == 0  # one process resumes what two began
    lines = (tmp_path / "run/metrics.jsonl").read_text()
    assert lines.startswith(before)
    assert [json.loads(line)["epoch"] for line in lines.splitlines()] == list(range(EPOCHS))
    assert (tmp_path / "run/result.json").exists()


@pytest.fixture
def as_rank(monkeypatch):
    """Pretend that torchrun started this process."""

    def pretend(rank: int, size: int = 2, **more: str) -> None:
        for name, value in environment(rank, size, free_port(), **more).items():
            monkeypatch.setenv(name, value)

    return pretend


def test_one_process_is_left_alone(as_rank):
    assert not launched()
    with joined("cpu") as ranks:
        assert (ranks.rank, ranks.size, ranks.alone) == (0, 1, True)
    as_rank(0, 1)
    assert not launched()
    with until_stopped(catch=False) as stopped:
        assert stopped is None


def test_other_commands_refuse_torchrun_and_one_rank_says_so(as_rank, capsys):
    for rank, said in ((0, "sfumato: error: demo runs in one process; start it without torchrun\n"), (1, "")):
        as_rank(rank)
        assert may_tell() == (rank == 0)
        assert main(["demo"]) == 2
        assert capsys.readouterr().err == said


def test_a_wrong_option_is_said_once(as_rank, capsys):
    for rank in (0, 1):
        as_rank(rank)
        assert main(["train", "--lamda", "3"]) == 2
        assert ("lamda" in capsys.readouterr().err) == (rank == 0)


def test_what_does_not_fit_the_ranks_gets_a_sentence(as_rank, monkeypatch):
    def join(device: str) -> None:
        with joined(device, timeout=0.5):
            pass

    as_rank(1)
    with pytest.raises(ConfigError, match="device is cuda:1, but each rank needs a GPU of its own; give --device cuda"):
        join("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="PyTorch sees no GPU, and NCCL needs one per rank; use --device cpu"):
        join("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="more ranks on this machine than its 1 GPUs; start torchrun with"):
        join("cuda")
    as_rank(1, WORLD_SIZE="many")
    with pytest.raises(ConfigError, match="WORLD_SIZE is 'many' in the environment; start the ranks with torchrun"):
        join("cpu")


def test_ranks_that_do_not_come_get_a_sentence(as_rank):
    as_rank(0)
    with (
        pytest.raises(RankLost, match=r"rank 0 did not meet the other 1 ranks at 127.0.0.1:\d+ \(.*start all of them"),
        joined("cpu", timeout=1),
    ):
        pass


STUCK = """
import ctypes
from sfumato.cli import stopping
stopping.GRACE = 0.3
with stopping.until_stopped(catch=True):
    mutex = ctypes.create_string_buffer(64)  # locked twice, and no signal ends the second wait
    lock = ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex)
    print("stuck", flush=True)
    lock(mutex)
"""


def test_a_step_that_never_ends_is_given_up(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "stuck\n"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.strip().startswith("sfumato: told to stop, and no step ended within 0.3 s; the same command resumes")


def test_a_descriptor_that_was_closed_meanwhile_is_not_given_back():
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno())
    try:
        with until_stopped(catch=True):
            ours.close()
            theirs.close()
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        with suppress(OSError, ValueError):  # whoever had set it (an event loop of another test) may have closed it
            signal.set_wakeup_fd(before)


def test_a_signal_becomes_a_question_and_a_second_one_acts():
    before = signal.getsignal(signal.SIGTERM), signal.default_int_handler
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it

    def stop_when_asked() -> None:
        with until_stopped(catch=True) as stopped:
            assert stopped is not None
            assert not stopped()
            signal.raise_signal(signal.SIGTERM)
            assert stopped()
            raise Interrupted("stopped")

    def go_on() -> None:
        with until_stopped(catch=True):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the second one did not act")

    for work in (stop_when_asked, go_on):
        with pytest.raises(KeyboardInterrupt):
            work()
        assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    signal.signal(signal.SIGINT, ours)
