"""Results survive damage, other keys and several processes."""

import json
import multiprocessing
import os
import signal
import time

from sfumato.studies.engine import Store


def test_what_was_written_is_read_back(tmp_path):
    store = Store(tmp_path)
    assert store.read("a") is None
    store.write("a", {"value": 1})
    assert store.read("a") == {"key": "a", "value": 1}


def test_damage_is_set_aside_and_never_trusted(tmp_path):
    store = Store(tmp_path)
    for number, text in enumerate(["{ half", "[]", '{"no": "key"}', "", '{"key": "other"}']):
        key = f"k{number}"
        (tmp_path / f"{key}.json").write_text(text)
        assert store.read(key) is None
        assert not (tmp_path / f"{key}.json").exists()
        assert (tmp_path / f"{key}.json.damaged").read_text() == text
        store.write(key, {"fresh": True})
        assert store.read(key) == {"key": key, "fresh": True}


def test_a_result_under_another_name_counts_as_damaged(tmp_path):
    store = Store(tmp_path)
    store.write("a", {"value": 1})
    (tmp_path / "b.json").write_text((tmp_path / "a.json").read_text())
    assert store.read("b") is None
    assert store.read("a") is not None


def _hold(folder: str, ready: str) -> None:
    from pathlib import Path

    with Store(Path(folder)).claim("a") as mine:
        Path(ready).write_text(json.dumps(mine))
        time.sleep(60)


def test_only_one_process_works_on_a_key_and_death_frees_it(tmp_path):
    store, ready = Store(tmp_path), tmp_path / "ready"
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(str(tmp_path), str(ready)))
    process.start()
    while not (ready.exists() and ready.read_text()):
        time.sleep(0.02)
    assert json.loads(ready.read_text()) is True
    with store.claim("a") as mine:
        assert not mine
    with store.claim("b") as other:
        assert other
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with store.claim("a") as mine:
        assert mine
