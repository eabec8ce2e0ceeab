"""The commands as a user calls them; digits only, so that they take seconds."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sfumato import checkpoint
from sfumato.cli.console import table
from sfumato.cli.main import main

TINY = ["--data", "digits", "--epochs", "2", "--limit", "300", "--device", "cpu", "--noise-std", "0.1"]
TINY_ATTACK = ["--epochs", "2", "--width", "8", "--blocks", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert main(["train", *TINY, "--cem", "--run", str(folder)]) == 0
    return folder


def test_help_and_version(capsys):
    assert main(["--help"]) == 0
    assert "sfumato COMMAND" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert main([]) == 2
    for name in ("demo", "train", "attack", "audit", "reproduce", "bench", "cuts"):
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert "example:" in text
        assert f"sfumato {name}" in text
        assert "_" not in "".join(word for word in text.split() if word.startswith("--"))


def test_an_unknown_command_lists_the_known_ones(capsys):
    assert main(["trian"]) == 2
    told = capsys.readouterr().err
    assert "unknown command 'trian' (did you mean train?); choose one of demo, train, attack, audit, tune," in told


def test_a_run_folder_holds_everything(run_folder):
    assert {path.name for path in run_folder.iterdir()} == {
        ".lock",
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
        "result.json",
    }
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert lines[-1]["cem_information"] > 0
    result = json.loads((run_folder / "result.json").read_text())
    assert 0 <= result["accuracy"] <= 1
    assert result["train_images"] + result["held_out_images"] == 300
    assert result["evidence"]["torch"] == torch.__version__


def test_a_second_call_with_the_same_folder_trains_nothing(run_folder, capsys):
    before = (run_folder / "model.safetensors").stat().st_mtime_ns
    assert main(["train", *TINY, "--cem", "--run", str(run_folder)]) == 0
    assert (run_folder / "model.safetensors").stat().st_mtime_ns == before


def test_another_configuration_in_the_same_folder_is_refused(run_folder, capsys):
    before = (run_folder / "config.json").read_text()
    assert main(["train", *TINY, "--cem", "--lam", "7", "--run", str(run_folder)]) == 2
    told = capsys.readouterr().err
    assert (
        "holds a run with the defence cem(0.3) + noise(0.1), not cem(7) + noise(0.1); leave that out to resume" in told
    )
    assert main(["train", "--epochs", "3", "--run", str(run_folder)]) == 2
    assert "holds a run with epochs 2, not 3; leave that out to resume the run, or choose" in capsys.readouterr().err
    assert (run_folder / "config.json").read_text() == before


def test_a_run_folder_knows_its_settings(run_folder, capsys):
    """Also where a storage setting differs, and as data on standard output."""
    before = (run_folder / "model.safetensors").stat().st_mtime_ns
    assert main(["train", "--run", str(run_folder), "--device", "cpu", "--json", "-"]) == 0
    assert (run_folder / "model.safetensors").stat().st_mtime_ns == before
    shown = capsys.readouterr()
    assert json.loads(shown.out)["config"]["epochs"] == 2
    assert "cem(0.3) + noise(0.1)" in " ".join(shown.err.split())


def test_an_unfinished_run_is_resumed_with_its_settings(tmp_path):
    assert main(["train", *TINY[:-2], "--defense", "dropout(0.1) + noise(0.2)", "--run", str(tmp_path / "a")]) == 0
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text((tmp_path / "a" / "config.json").read_text())
    assert main(["train", "--run", str(tmp_path / "b")]) == 0
    ours, theirs = (checkpoint.load(tmp_path / name / "model.safetensors")[0] for name in "ab")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_attack_writes_figures_and_a_picture(run_folder, tmp_path, capsys):
    assert main(["attack", str(run_folder), *TINY_ATTACK, "--json", str(tmp_path / "out.json")]) == 0
    folder = run_folder / "attacks" / "decoder"
    written = json.loads((folder / "result.json").read_text())
    told = json.loads((tmp_path / "out.json").read_text())
    assert {name: told[name] for name in written} == written
    assert set(told["attacks"]) == {"decoder", "ridge", "nearest"}
    errors = {name: one["test"]["mse"] for name, one in told["attacks"].items()}
    assert errors[told["strongest"]] == min(errors.values())
    assert told["leakage"]["candidates"] > 0
    assert written["test"]["mse"] > 0
    assert written["train"]["ssim"] < 1
    assert (folder / "reconstructions.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "training images" in out
    assert f"{told['strongest']} attack on test images (strongest)" in out
    assert "identified, which of" in out
    assert "NOT CONVERGED" in out  # two epochs show nothing
    assert main(["attack", str(run_folder), "--device", "cpu"]) == 0
    assert capsys.readouterr().out == out  # a finished attack is shown again, with the settings that it had
    assert main(["attack", str(run_folder), "--epochs", "3", "--device", "cpu"]) == 2
    assert "holds another attack (epochs 2 -> 3)" in capsys.readouterr().err


def test_the_gan_attack_has_its_own_settings_and_place(run_folder, tmp_path, capsys):
    (tmp_path / "gan.yaml").write_text("attack: gan\ncritic_steps: 3\n")
    words = ["attack", str(run_folder), "--config", str(tmp_path / "gan.yaml"), *TINY_ATTACK]
    assert main([*words, "--critic-lr", "0.001"]) == 0
    result = json.loads((run_folder / "attacks" / "gan" / "result.json").read_text())
    assert result["attack"] == "gan"
    config = result["config"]
    assert (config["epochs"], config["critic_steps"], config["critic_lr"]) == (2, 3, 0.001)
    assert config["mse_weight"] == 1500.0  # not given: the attack's default
    assert "gan attack" in capsys.readouterr().out


def test_help_of_attack_has_the_settings_of_all_attacks(capsys):
    with pytest.raises(SystemExit):
        main(["attack", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Passes over the attacker's images. (default: decoder 50, gan 150, strong 150, posterior" in text
    assert "Steps of the critic for each one of the generator. (default: gan 10)" in text
    assert "Images per step. (default: decoder 256, gan 256, strong 64, posterior" in text


def test_tables_print_texts_as_they_are(capsys):
    """A class or a file may have any name; markup in it must not become colours or links."""
    table("[b]t[/b]", ("image", "class"), [("[red]a.png", "[link=http://x]cat[/link]")])
    shown = capsys.readouterr().out
    assert "[b]t[/b]" in shown
    assert "[red]a.png" in shown
    assert "[link=http://x]cat[/link]" in shown
    assert "\x1b" not in shown


def test_settings_come_from_a_yaml_file_and_options_override_it(tmp_path):
    (tmp_path / "settings.yaml").write_text("data: digits\nepochs: 9\nlimit: 100\ncem: true\nnoise_std: 0.1\n")
    words = ["train", "--config", str(tmp_path / "settings.yaml"), "--epochs", "1", "--run", str(tmp_path / "run")]
    assert main(words) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (config["epochs"], config["limit"], config["cem"]) == (1, 100, True)


def test_a_file_of_settings_holds_settings_only(tmp_path, capsys):
    path = tmp_path / "settings.yaml"
    for text, sentence in (
        ("plugin: [own.py]", "plugin in {path} cannot be set by a file; take it out"),
        ("epoch: 3", "epoch in {path} is no setting (did you mean epochs?); take it out"),
        ("- 3", "{path} holds no settings; write lines such as"),
        ("a: [", "cannot read {path} (while parsing"),
    ):
        path.write_text(text)
        assert main(["train", "--config", str(path)]) == 2
        assert sentence.format(path=path) in capsys.readouterr().err
    assert main(["train", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "--epo", "3"], "unknown option --epo (did you mean --epochs?); `sfumato train --help` shows"),
        (["train", "--epochs", "3.5"], "--epochs: '3.5' has no meaning here; give a whole number"),
        (
            ["train", "--covariance", "spherica"],
            "(did you mean spherical?); choose one of full, tied, diagonal, spherical",
        ),
        (["attack"], "the following arguments are required: RUN"),
        (["attack", "any", "--attack", "banana"], "'banana' is not known; choose one of decoder, gan, ridge, nearest,"),
        (["protect", "any"], "the following arguments are required: --out"),
        (["bench", "--rounds", "1"], "--rounds: 1 has no meaning here; give at least 2"),
        (["bench", "--seconds", "inf"], "give a positive number"),
        (["bench", "trainin"], "(did you mean training?)"),
        (["reproduce", "table1", "--executor-options", "3"], "give a mapping"),
    ],
)
def test_a_mistake_in_the_words_is_one_sentence_with_a_remedy(words, sentence, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("sfumato: error: ")
    assert sentence in error
    assert error.count("\n") == 1


def test_words_are_read_before_torch_is_loaded():
    """The help and a mistake of every command, and what a command finds out before it loads anything."""
    code = (
        "import contextlib, io, sys\n"
        "from sfumato.cli.main import main\n"
        "from sfumato.cli.commands import COMMANDS\n"
        "def loaded(*names): return sorted({'torch', *names} & set(sys.modules))\n"
        "for words in [[name, word] for name in COMMANDS for word in ('--help', '--no-such-option')]:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        main(words)\n"
        "print(loaded('numpy', 'matplotlib', 'onnxruntime', 'rich', 'yaml'))\n"
        "mistakes = ['export', 'export any', 'query any one.png', 'audit any --minutes 0', 'tune --trainings 0',\n"
        "            'reproduce table1 --budget huge', 'reproduce table1 --minutes -1', 'bench --rounds 1',\n"
        "            'protect any']\n"
        "print([main(words.split()) for words in mistakes], loaded())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"[]\n{[2] * 9} []\n"
    assert done.stderr.count("\n") == 14 + 9
    assert "sfumato: error: name a run and a folder: `sfumato export RUN --out BUNDLE`\n" in done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["train", "--data", "banana"], "unknown data set 'banana'; choose one of digits"),
        (["train", "--data", "cifar10"], "data_dir"),
        (["train", "--data", "folder", "--data-dir", "/nowhere/at/all"], "/nowhere/at/all"),
        (["train", *TINY, "--cem", "--noise-std", "0"], "give a positive --noise-std"),
        (["train", *TINY, "--device", "toaster"], "give auto, cpu or cuda"),
        (["attack", "/nowhere/at/all"], "is not a run folder"),
        (
            ["attack", "any", "--attack", "gan", "--lr", "1"],
            "the gan attack has no setting 'lr'; its settings are hold_out, seed, epochs",
        ),
        (["attack", "any", "--critic-steps", "3"], "the decoder attack has no setting 'critic_steps'; its settings"),
        (["attack", "any", "--attack", "gan", "--critic-steps", "0"], "critic_steps is 0; give at least 1"),
    ],
)
def test_mistakes_end_with_one_sentence_and_exit_code_2(words, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("sfumato: error: ")
    assert text in error
    assert "Traceback" not in error


def test_an_unfinished_run_cannot_be_attacked(run_folder, tmp_path, capsys):
    (tmp_path / "config.json").write_text((run_folder / "config.json").read_text())
    assert main(["attack", str(tmp_path)]) == 2
    assert "is not finished" in capsys.readouterr().err


def test_a_model_file_of_another_network_is_refused(run_folder, tmp_path, capsys):
    for name in ("config.json", "result.json"):
        (tmp_path / name).write_text((run_folder / name).read_text())
    tensors, meta = checkpoint.load(run_folder / "model.safetensors")
    tensors.pop("edge.conv1.weight")
    checkpoint.save(tmp_path / "model.safetensors", tensors, {k: v for k, v in meta.items() if k != "format"})
    assert main(["attack", str(tmp_path)]) == 2
    assert "holds another model than its settings say" in capsys.readouterr().err


def test_a_full_disk_ends_with_a_sentence_and_keeps_what_was_there(tmp_path, capsys):
    """A limit on the size of files refuses a write as a full disk does."""
    resource = pytest.importorskip("resource", reason="needs limits on the size of files")
    words = ["train", *TINY, "--run", str(tmp_path / "run")]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        code = main(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2
    assert "cannot write" in capsys.readouterr().err
    assert main(words) == 0  # with room again, the same command finishes


@pytest.mark.slow
def test_kill_9_at_two_moments_changes_neither_weights_nor_attack(tmp_path, monkeypatch):
    """A real process, really killed in the training and in the attack; the end is bit for bit the same."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # of the processes, as of this one
    shape = ["--data", "digits", "--limit", "60", "--width", "2", "--clusters-per-class", "1", "--epochs", "20"]
    shape += ["--device", "cpu", "--noise-std", "0.1", "--cem", "--checkpoint-seconds", "0"]
    attack = ["--epochs", "20", "--width", "4", "--blocks", "0", "--device", "cpu"]

    def killed(words: list[str], folder: Path) -> None:
        state = folder / "state.safetensors"
        before = state.stat().st_mtime_ns if state.exists() else 0
        process = subprocess.Popen(
            [sys.executable, "-m", "sfumato.cli.main", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not (state.exists() and state.stat().st_mtime_ns != before):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (folder / "result.json").exists()

    for name, kills in (("calm", (0, 0)), ("rough", (1, 1))):
        run = tmp_path / name
        calls = ((["train", *shape, "--run", str(run)], run), (["attack", str(run), *attack], run / "attacks/decoder"))
        for (words, folder), count in zip(calls, kills, strict=True):
            for _ in range(count):
                killed(words, folder)
            assert main(words) == 0
    for name in ("model.safetensors", "attacks/decoder/attack.safetensors"):
        ours, theirs = (checkpoint.load(tmp_path / which / name)[0] for which in ("calm", "rough"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ridge", []),
        ("nearest", []),
        ("strong", ["--epochs", "2", "--width", "4", "--blocks", "1"]),
        ("optimization", ["--images", "8", "--iterations", "5", "--choose-on", "2", "--tv", "0"]),
    ],
)
def test_every_attack_is_a_word_away(run_folder, name, words, capsys):
    assert main(["attack", str(run_folder), "--attack", name, "--device", "cpu", *words]) == 0
    folder = run_folder / "attacks" / name
    result = json.loads((folder / "result.json").read_text())
    assert result["test"]["mse"] > 0
    assert not list(folder.glob("redrawn*"))
    pictures, _ = checkpoint.load(folder / "pictures.safetensors")
    assert float(pictures["test.mse"].mean()) == pytest.approx(result["test"]["mse"], rel=1e-5)
    assert len(pictures["test.mse"]) == result["images"]["test"]
    first = capsys.readouterr().out
    assert main(["attack", str(run_folder), "--attack", name, "--device", "cpu", *words]) == 0
    assert capsys.readouterr().out == first
