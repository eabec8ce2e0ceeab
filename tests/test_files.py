import errno
import hashlib
import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sfumato import checkpoint, files
from sfumato.errors import CheckpointError, ConfigError, SfumatoWarning, StorageError
from sfumato.files import json_line, occupied, read_json, sha256_of, write_atomic, write_json, write_text


def test_writes_and_replaces_with_ordinary_permissions(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_text(path, "one")
    write_text(path, "zwei ä")
    assert path.read_text(encoding="utf-8") == "zwei ä"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_reader_of_the_old_file_never_sees_a_part_of_the_new_one(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with path.open() as reader:
        write_text(path, "new and longer")
        assert reader.read() == "old"  # the new file was renamed over the name, not written into the old one
    assert path.read_text() == "new and longer"


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})

    def full(temporary: Path) -> None:
        temporary.write_text("half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match=r"cannot write .*result.json: No space left on device; free some space"):
        write_atomic(path, full)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_real_disk_full_error_is_caught(tmp_path):
    def full(temporary: Path) -> None:
        with Path("/dev/full").open("w") as handle:
            handle.write("x" * 100_000)

    with pytest.raises(StorageError, match="No space left"):
        write_atomic(tmp_path / "file", full)


def test_nan_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "bad.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_round_trip(tmp_path):
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, {"a.b": torch.arange(3)}, {"epoch": 4})
    tensors, meta = checkpoint.load(path)
    assert tensors["a.b"].tolist() == [0, 1, 2]
    assert meta["epoch"] == 4


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    checkpoint.save(path, {"a": torch.zeros(1)}, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 99, this version reads up to 1; upgrade sfumato"):
        checkpoint.load(path)


def test_damaged_foreign_and_missing_checkpoints(tmp_path):
    path = tmp_path / "state.safetensors"
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.load(path)
    path.write_bytes(b"\x10\x00garbage")
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load(path)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a Sfumato checkpoint"):
        checkpoint.load(path)


def test_a_failed_checkpoint_keeps_the_last_one(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, {"a": torch.ones(2)}, {"epoch": 1})

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", refuse)
    with pytest.raises(StorageError, match="No space left"):
        checkpoint.save(path, {"a": torch.zeros(2)}, {"epoch": 2})
    assert checkpoint.load(path)[1]["epoch"] == 1


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EEXIST, "in the way"), (errno.EACCES, "you may write to")],
)
def test_the_remedy_fits_the_reason(number, remedy):
    said = str(files.unwritable(Path("here"), OSError(number, os.strerror(number)), "nothing is lost"))
    assert said.startswith(f"cannot write here: {os.strerror(number)}; ")
    assert remedy in said
    assert said.endswith("(nothing is lost)")


def test_a_file_in_the_place_of_a_folder_is_said(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(StorageError, match="in the way: choose another folder"):
        files.write_text(tmp_path / "taken" / "result.json", "{}")


def test_a_real_write_failure_of_a_checkpoint_keeps_the_last_one(tmp_path):
    """A process that may not write more than 1 MB stands for a full disk."""
    path = tmp_path / "state.safetensors"
    code = (
        "import resource, signal, sys, torch; from pathlib import Path; from sfumato import checkpoint\n"
        "from sfumato.errors import StorageError\n"
        "path = Path(sys.argv[1]); checkpoint.save(path, {'a': torch.ones(2)}, {'epoch': 1})\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
        "try: checkpoint.save(path, {'a': torch.ones(10**6)}, {'epoch': 2})\n"
        "except StorageError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout
    assert "free some space" in done.stdout
    assert checkpoint.load(path)[1]["epoch"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize("place", [1, 8, 40])
def test_a_flipped_bit_in_a_tensor_is_damage(tmp_path, place):
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, {"a": torch.rand(10), "b": torch.zeros(0), "c": torch.tensor(True)}, {})
    assert checkpoint.load(path)[1] == {"format": 1}
    content = bytearray(path.read_bytes())
    content[-place] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged .*; delete it and run the command again"):
        checkpoint.load(path)


def test_the_checkpoint_before_the_last_is_kept_and_used_where_the_last_is_damaged(tmp_path):
    path = tmp_path / "state.safetensors"
    assert not checkpoint.resumable(path)
    for epoch in range(3):
        checkpoint.save_next(path, {"a": torch.full((4,), float(epoch))}, {"epoch": epoch})
    assert checkpoint.load_newest(path)[1]["epoch"] == 2
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.warns(SfumatoWarning, match="state.safetensors is damaged .*instead the checkpoint before it is used"):
        assert checkpoint.load_newest(path)[1]["epoch"] == 1
    path.unlink()  # a crash between the two renames
    assert checkpoint.resumable(path)
    assert checkpoint.load_newest(path)[1]["epoch"] == 1
    for file in (path, tmp_path / "state.safetensors.previous"):
        file.write_bytes(b"x")
    with pytest.raises(
        CheckpointError, match="damaged .*; so is state.safetensors: delete both and run the command again"
    ):
        checkpoint.load_newest(path)
    checkpoint.drop_previous(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "Rprop", "Counting"])
def test_an_optimizer_with_a_schedule_of_its_own_continues_exactly(tmp_path, optimizer):
    """Rates that were changed, step counts that are plain numbers, slots of any kind."""

    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    state = self.state[parameter]
                    state["calls"] = state.get("calls", 0) + 1
                    parameter.data.add_(parameter.grad, alpha=-group["lr"] / math.sqrt(state["calls"]))

    def make():
        parameter = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
        cls = Counting if optimizer == "Counting" else getattr(torch.optim, optimizer)
        return parameter, cls([parameter], lr=0.1)

    def steps(parameter, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            (parameter - 1).square().sum().backward()
            optimizer.step()
            optimizer.param_groups[0]["lr"] *= 0.5

    whole, first = make()
    steps(whole, first, 3)
    checkpoint.save(tmp_path / "o", checkpoint.optimizer_state(first), {})
    resumed, second = make()
    resumed.data.copy_(whole.data)
    checkpoint.load_optimizer_state(second, checkpoint.load(tmp_path / "o")[0])
    assert second.param_groups[0]["lr"] == 0.0125
    steps(whole, first, 2)
    steps(resumed, second, 2)
    assert torch.equal(whole, resumed)


def test_an_optimizer_that_no_checkpoint_holds_is_named():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.LBFGS([parameter])

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(ConfigError, match="LBFGS carries a list .*, which no checkpoint holds; take an optimizer"):
        checkpoint.optimizer_state(optimizer)


def test_a_folder_is_occupied_by_one_process_until_it_ends(tmp_path):
    code = (
        "import sys; from pathlib import Path; from sfumato.files import occupied\n"
        "try:\n with occupied(Path(sys.argv[1])): print('mine')\n"
        "except Exception as error: print(error)\n"
    )

    def other() -> str:
        return subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True).stdout

    with occupied(tmp_path):
        assert f"another process is at work in {tmp_path}; wait until it has ended, or choose" in other()
    assert other() == "mine\n"


def test_optimizer_state_round_trip_continues_exactly(tmp_path):
    def steps(parameters: torch.nn.Parameter, optimizer: torch.optim.Optimizer, count: int) -> None:
        for index in range(count):
            optimizer.zero_grad()
            ((parameters - index) ** 2 * torch.arange(24.0).view(2, 3, 2, 2)).sum().backward()
            optimizer.step()

    for cls in (torch.optim.SGD, torch.optim.Adam):
        options = {"lr": 0.1, "fused": True} | ({"momentum": 0.9} if cls is torch.optim.SGD else {})
        whole = torch.nn.Parameter(torch.rand(2, 3, 2, 2).to(memory_format=torch.channels_last))
        optimizer = cls([whole], **options)
        steps(whole, optimizer, 3)
        resumed = torch.nn.Parameter(whole.detach().clone())
        assert resumed.stride() == whole.stride()
        other = cls([resumed], **options)
        checkpoint.save(tmp_path / "optimizer", checkpoint.optimizer_state(optimizer), {})
        checkpoint.load_optimizer_state(other, checkpoint.load(tmp_path / "optimizer")[0])
        steps(whole, optimizer, 2)
        steps(resumed, other, 2)
        assert torch.equal(whole, resumed)


def test_what_was_written_as_json_is_read(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, "ä"]})
    assert read_json(tmp_path / "a.json") == {"a": [1, "ä"]}
    with pytest.raises(CheckpointError, match=r"b.json does not exist; make it first$"):
        read_json(tmp_path / "b.json", remedy="make it first")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"a": 1} x'])
def test_damaged_json_gets_one_sentence(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"a.json is damaged \(.*\); delete it and run the command again$"
    ) as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_a_line_of_figures_is_json_whatever_they_are():
    line = json_line({"a": float("nan"), "b": float("-inf"), "c": 0.1, "d": None, "e": "NaN", "f": 2})
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name)) == {
        "a": None,
        "b": None,
        "c": 0.1,
        "d": None,
        "e": "NaN",
        "f": 2,
    }
    assert "\n" not in line


def test_the_digest_is_hashlib_s(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(data)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()
