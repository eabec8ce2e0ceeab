"""Called again, an audit goes on where it was, in the time that it has, and only for the same model."""

import re
import shutil
from dataclasses import replace

import pytest
import torch
from audit_cases import SUITE, audit, tiny_subject

from sfumato.attacks import DecoderAttack
from sfumato.audit import run_audit
from sfumato.audit.suite import Piece
from sfumato.errors import CheckpointError, ConfigError, Interrupted
from sfumato.split import Channel, SplitModel

pytestmark = pytest.mark.usefixtures("quick")


class Stop:
    """True at the n-th question."""

    def __init__(self, after):
        self.left = after

    def __call__(self):
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("after", [0, 5])
def test_an_interrupted_audit_ends_as_an_undisturbed_one(audited, tmp_path, after):
    with pytest.raises(Interrupted):
        audit(tmp_path, should_stop=Stop(after))
    assert not (tmp_path / "audit.json").exists()
    result = audit(tmp_path).result
    calm = audited[1].result
    for part in ("attacks", "queries", "knowledge"):
        for ours, theirs in zip(result[part], calm[part], strict=True):
            assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    assert list((tmp_path / "pieces").glob("*.state*")) == []


def test_a_killed_attack_loses_at_most_one_epoch(tmp_path):
    lines = []

    def tell(text):
        lines.append(text)
        if "decoder: epoch 2/3" in text and not any("again" in line for line in lines):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(tmp_path, suite=SUITE[:1] + SUITE[5:6], tell=tell)
    lines.append("again")
    audit(tmp_path, suite=SUITE[:1] + SUITE[5:6], tell=tell)
    after = lines[lines.index("again") :]
    assert not any("decoder: epoch 2/3" in line or "ridge" in line for line in after)
    assert any("decoder: epoch 3/3" in line for line in after)


def test_a_second_call_works_on_nothing(audited, tmp_path, monkeypatch):
    folder, done = (
        shutil.copytree(audited[0], tmp_path / "again"),
        audited[1],
    )  # a busy machine plans anew and writes it
    monkeypatch.setattr("sfumato.audit.run._RUNNERS", {})
    again = audit(folder).result
    assert again["attacks"] == done.result["attacks"]


def test_another_target_in_the_same_folder_is_refused(audited):
    with pytest.raises(CheckpointError, match="holds an audit with another target, channel; choose another --out"):
        audit(audited[0], tiny_subject(noise_std=0.2))
    with pytest.raises(CheckpointError, match="holds an audit with another seed"):
        audit(audited[0], seed=5)


class Forward(torch.nn.Module):
    """One text, one set of weights, two behaviours."""

    pools = True

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return torch.nn.functional.avg_pool2d(x, 2).flatten(1) if Forward.pools else x.flatten(1)[:, :4]


def test_a_changed_forward_is_another_model(tmp_path, monkeypatch):
    """The name, the printed text, the weights and the feature's shape stay; the features do not."""
    subject = replace(tiny_subject(), model=SplitModel(Forward(), Channel(noise_std=0.1), torch.nn.Identity()))
    subject = replace(subject, prior=None, exact_mse=None)
    run_audit(subject, subject.sets, tmp_path, minutes=0.5, suite=SUITE[:1])
    run_audit(subject, subject.sets, tmp_path, minutes=0.5, suite=SUITE[:1])
    monkeypatch.setattr(Forward, "pools", False)
    with pytest.raises(CheckpointError, match="another behaviour"):
        run_audit(subject, subject.sets, tmp_path, minutes=0.5, suite=SUITE[:1])


def test_another_version_is_another_audit(audited, monkeypatch):
    monkeypatch.setattr("sfumato.__version__", "99.0")
    with pytest.raises(CheckpointError, match="holds an audit with another versions"):
        audit(audited[0])


def test_more_minutes_extend_an_audit(tmp_path, monkeypatch):
    """What was done stays; what was left out, or had not converged, gets the new time; fewer minutes change nothing."""
    subject = tiny_subject()
    suite = (SUITE[0], replace(SUITE[5], epochs=(1, 4)), SUITE[-1], replace(SUITE[2], minutes=9))
    trained, plain = [], DecoderAttack.fit
    monkeypatch.setattr(DecoderAttack, "fit", lambda *given, **more: trained.append(1) or plain(*given, **more))
    monkeypatch.setattr("sfumato.audit.run._FEWEST", 10**6)
    first = run_audit(subject, subject.sets, tmp_path, minutes=1.0, suite=suite).result
    (decoder,) = (one for one in first["attacks"] if one["name"] == "decoder")
    assert decoder["converged"] is False
    assert {"optimization", "repeats"} < {one["what"] for one in first["not_tested"]}
    assert first["metrics"]["left_out"] == 2
    monkeypatch.setattr("sfumato.audit.run._FEWEST", 8)
    longer = run_audit(subject, subject.sets, tmp_path, minutes=9.0, suite=suite).result
    by_name = {one["name"]: one for one in longer["attacks"]}
    assert by_name["decoder"]["test"] == decoder["test"]  # trained again, to the same end: 4 epochs are its most
    assert len(trained) == 2
    assert "optimization" in by_name
    assert [one["name"] for one in longer["queries"]] == ["repeats"]
    assert longer["metrics"]["left_out"] == 0
    assert by_name["ridge"] == next(one for one in first["attacks"] if one["name"] == "ridge")
    assert longer["budget"]["minutes"] == 9.0
    shorter = run_audit(subject, subject.sets, tmp_path, minutes=2.0, suite=suite).result
    assert shorter["attacks"] == longer["attacks"]
    assert shorter["budget"]["minutes"] == 9.0


def test_a_budget_has_to_be_positive(tmp_path):
    with pytest.raises(ConfigError, match="minutes is 0; give a positive number"):
        audit(tmp_path, minutes=0)


class Clock:
    """Stands still but for what the test's own steps take, whatever the machine does."""

    def __init__(self):
        self.now, self.slower = 1000.0, 1.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """A clock on which a step of a decoder or a GAN takes two seconds, times what the test says, and nothing else."""
    clock = Clock()

    def step(self, learner, turn):
        clock.now += 2.0 * clock.slower
        return torch.full((len(self.figures),), 0.1)

    for name in ("decoder.DecoderAttack", "gan.GanAttack"):
        monkeypatch.setattr(f"sfumato.attacks.{name}._step", step)
    monkeypatch.setattr("sfumato.attacks.learned.LearnedAttack._judge", lambda *_: 0.1)
    monkeypatch.setattr("time.monotonic", clock)
    return clock


QUICK = {"settings": {"width": 4, "blocks": 0, "precision": "fp32"}}


@pytest.mark.parametrize(("slower", "ending"), [(1.0, 0.0), (4.0, 0.0), (1.0, 200.0)])
def test_the_time_is_used_and_kept(tmp_path, clock, slower, ending):
    """Two attacks that could train for ever share 10 minutes; both get their share, also where the machine slows down
    while they train. What comes afterwards has its time set aside."""
    suite = [Piece(name, "attack", name, 1, epochs=(1, 10**6), **QUICK) for name in ("decoder", "gan")]
    subject = tiny_subject()

    def tell(text):
        clock.slower = slower if "epoch 3/" in text else clock.slower

    result = run_audit(subject, subject.sets, tmp_path, minutes=10, ending=ending, suite=suite, tell=tell).result
    seconds = 600 - ending
    # A training leaves a fifth of its time to what it reconstructs, which costs nothing on this clock.
    assert 0.75 * seconds < result["budget"]["seconds"] < 1.1 * seconds
    decoder, gan = (next(one for one in result["attacks"] if one["name"] == name) for name in ("decoder", "gan"))
    assert min(decoder["seconds"], gan["seconds"]) > 0.3 * seconds
    assert decoder["settings"]["epochs"] == len(decoder["history"])  # planned anew at the machine's pace, and kept


def test_a_training_of_which_too_little_fits_is_left_out_or_has_fewer_images(tmp_path, clock):
    """An epoch over 270 images takes 10 s (5 steps), and 30 of them take longer than the share of each."""
    suite = [
        Piece("gan", "attack", "gan", 1, epochs=(30, 60), minutes=1, **QUICK),
        Piece("decoder", "attack", "decoder", 1, epochs=(30, 60), **QUICK),
    ]
    subject = tiny_subject()
    result = run_audit(subject, subject.sets, tmp_path, minutes=3, suite=suite).result
    (why,) = (one["why"] for one in result["not_tested"] if one["what"] == "gan")
    assert (minutes := re.fullmatch(r"too little time: give about --minutes (\d+) or more", why))
    assert 5 <= int(minutes[1]) <= 20
    (decoder,) = result["attacks"]
    assert 128 <= decoder["images"] < 300
    assert len(decoder["history"]) > 20


def test_time_that_is_left_over_goes_to_what_did_not_fit(tmp_path, monkeypatch):
    """A search that has no room at first runs when the attack behind it has come to rest early."""
    asked = []

    def fits(piece, context, seconds):
        asked.append(piece.name)
        return 5 if seconds > 60 else 0

    monkeypatch.setattr("sfumato.audit.run._FEWEST", 5)
    monkeypatch.setattr("sfumato.audit.run.affordable", fits)
    subject = tiny_subject()
    slow = replace(SUITE[1], share=9)
    result = run_audit(subject, subject.sets, tmp_path, minutes=2.0, suite=(SUITE[0], SUITE[-1], slow)).result
    assert asked == ["optimization", "optimization"]
    by_name = {one["name"]: one for one in result["attacks"]}
    assert set(by_name) == {"ridge", "optimization", "nearest"}
    assert by_name["optimization"]["test"]["images"] == 5


def test_what_never_fits_is_said_and_tried_again(tmp_path, monkeypatch):
    """A plan that was made in a busy moment leaves nothing out for good."""
    monkeypatch.setattr("sfumato.audit.run._FEWEST", 10**6)
    subject = tiny_subject()
    options = {"minutes": 2.0, "suite": (SUITE[0], SUITE[-1])}
    result = run_audit(subject, subject.sets, tmp_path, **options).result
    untested = {one["what"]: one["why"] for one in result["not_tested"]}
    assert untested["optimization"] == "too little time for a search image by image: give more --minutes"
    monkeypatch.undo()
    again = run_audit(subject, subject.sets, tmp_path, **options).result
    assert {one["name"] for one in again["attacks"]} == {"ridge", "optimization"}
