"""Two processes against one: the same cases with a part of the samples each and with all of them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rank_cases import cases
from rank_tools import environment, free_port
from safetensors.torch import load_file

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder with what two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    port, second = free_port(), str(free_port())
    started = [
        subprocess.Popen(
            [sys.executable, str(HERE / "rank_worker.py"), str(folder)],
            env=environment(rank, 2, port, SECOND_PORT=second),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for rank, one in enumerate(started):
            out, errors = one.communicate(timeout=200)
            assert one.returncode == 0, errors
            (folder / f"said.{rank}").write_text(out + errors * rank)
    finally:
        for one in started:
            one.kill()
    return folder


@pytest.mark.parametrize("name", cases())
@pytest.mark.filterwarnings("ignore::sfumato.errors.SfumatoWarning")
def test_two_processes_give_what_one_gives(name, together):
    expected = cases()[name]()
    found = [load_file(together / f"{name}.{rank}.safetensors") for rank in range(2)]
    assert expected.keys() == found[0].keys() == found[1].keys()
    for key, value in expected.items():
        assert torch.equal(found[0][key], found[1][key]), f"the ranks differ in {key}"
        if key.endswith("_pulls"):  # a figure for the log, which a short last batch counts on one rank only
            continue
        close = 1e-3 if key == "loss" else 1e-5  # its penalty is weighed by a task loss that ranks round differently
        torch.testing.assert_close(
            found[0][key], value, rtol=close, atol=close, msg=f"{name}: {key} differs from one process"
        )


def test_stopped_by_one_rank_all_go_on_and_end_as_if_undisturbed(together):
    stopped, undisturbed = (load_file(together / f"{name}/model.safetensors") for name in ("stopped", "undisturbed"))
    assert all(torch.equal(stopped[key], undisturbed[key]) for key in undisturbed)
    lines = [
        [json.loads(line) for line in (together / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("stopped", "undisturbed")
    ]
    for one, other in zip(*lines, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
    for rank in range(2):
        found = load_file(together / f"interrupted.{rank}.safetensors")
        assert (int(found["stops"]), int(found["steps"]), int(found["ranks"])) == (2, 8, 2)
        assert not found["differs"]
    assert not (together / "stopped/state.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nan", "FeatureError: the features contain NaN or infinity; the training has diverged"),
        ("label", "FeatureError: labels reach from"),
        ("dimensions", "ConfigError: rank 1 has another number of dimensions than rank 0; give all ranks the same"),
        ("one", "DataError: disk 1 is on fire; leave the building"),
        ("first", "ConfigError: rank 0 is tired; let it sleep"),
        ("images", "ConfigError: rank 1 has another data fingerprint than rank 0; give all ranks the same images"),
        ("setting", "ConfigError: rank 1 has another setting lr than rank 0; start all ranks with the same command"),
        ("batch", "ConfigError: a batch has 1 images, fewer than the 2 ranks; start fewer processes"),
        ("engine", "ConfigError: engine compiled works in one process; give --engine eager"),
        ("folder", "CheckpointError: .*undisturbed holds another run"),
    ],
)  # fmt: skip
def test_a_mistake_of_one_rank_ends_both_with_its_sentence(name, text, together):
    told = [json.loads((together / f"refusals.{rank}.json").read_text(encoding="utf-8"))[name] for rank in range(2)]
    assert told[0] == told[1]
    assert re.match(text, told[0]), told[0]


def test_values_of_rank_0_reach_all(together):
    for rank in range(2):
        told = json.loads((together / f"refusals.{rank}.json").read_text(encoding="utf-8"))
        assert json.loads(told["shared"]) == {"from": 0, "umlaut": "ü", "nothing": None}


def test_one_rank_of_a_command_prints_and_writes(together):
    assert (together / "said.0").read_text().count("accuracy, test") == 1
    assert (together / "said.1").read_text() == ""
    figures = json.loads((together / "figures.json").read_text())
    assert figures == json.loads((together / "command/result.json").read_text())
    assert figures["evidence"]["ranks"] == 2


def test_a_silent_rank_ends_the_others_after_the_timeout(together):
    """The other one waits until this text is written."""
    silent = (together / "silent").read_text()
    assert silent.startswith("RankLost: another process of this training ended or stopped answering (")
    assert silent.endswith("the same command resumes from the last checkpoint")
