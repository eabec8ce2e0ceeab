"""No piece outlives its time: it is asked for the deadline wherever it calls the model, and what is late is named."""

import re
from dataclasses import replace

import pytest
import torch
from audit_cases import SUITE, TINY, tiny_subject
from torch import nn

from sfumato.attacks import RidgeAttack
from sfumato.audit import run_audit
from sfumato.audit.context import TooLate, limited
from sfumato.audit.suite import Piece
from sfumato.split import SplitModel

pytestmark = pytest.mark.usefixtures("quick")


class Clock:
    """Time that passes only where a test's model or attack lets it."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


class Slow(nn.Module):
    """Takes `seconds` at every call once `begins` says so, as a wide activation does."""

    def __init__(self, clock, seconds, inner):
        super().__init__()
        self.clock, self.seconds, self.inner, self.begins = clock, seconds, inner, False

    def forward(self, z):
        self.clock.now += self.seconds * self.begins
        return self.inner(z)


RIDGE = SUITE[0]
CLOUD = Piece("cloud:ridge", "attack", "ridge", 1, settings={"draws": 1}, needs=("cloud",), options={"cloud": 2})
LATE = {
    "an attack on the cloud's activations": CLOUD,
    "the other closed form on them": replace(CLOUD, name="cloud:nearest", attack="nearest"),
    "a sweep": Piece("pairs", "knowledge", "ridge", 1, 0.5, options={"words": "few", "shares": [1, 0.5]}),
    "probes": Piece("probes", "probe", "ridge", 1, 0.5, options={"train": 200}),
    "a training": Piece("gan", "attack", "gan", 1, 0.5, settings=TINY, epochs=(50, 60)),
}


@pytest.mark.parametrize("kind", LATE)
def test_whatever_takes_too_long_is_given_up_and_named(kind, clock, tmp_path, monkeypatch):
    """Each call of either half takes 20 s, and each piece needs far more of them than fit into a minute."""
    monkeypatch.setattr("sfumato.attacks.observer._KEPT", 0)  # features too many to be kept
    subject = tiny_subject(train=600)
    halves = [Slow(clock, 20.0, half) for half in (subject.model.edge, nn.Sequential(nn.Linear(6, 5), nn.ReLU()))]
    subject = replace(
        subject, model=SplitModel(halves[0], subject.model.channel, halves[1]), prior=None, exact_mse=None
    )

    def tell(text):
        if LATE[kind].name in text:
            for half in halves:
                half.begins = "left out" not in text

    suite = (RIDGE, LATE[kind])
    result = run_audit(subject, subject.sets, tmp_path, minutes=1.0, suite=suite, tell=tell).result
    assert [one["name"] for one in result["attacks"]] == ["ridge"]
    (why,) = (one for one in result["not_tested"] if one["what"] == LATE[kind].name)
    assert why["left_out"]
    assert "more --minutes" in why["why"] or "give about --minutes" in why["why"]
    assert result["budget"]["seconds"] <= 60 + 3 * 20  # a call that was begun ends, and the finished model is asked
    assert result["failed"] == []


def test_the_model_is_free_again_afterwards(clock):
    model = tiny_subject().model
    x = torch.zeros(2, 1, 4, 4)
    with limited(model, 1001.0) as stop:
        model(x)
        assert not stop()
        clock.now = 1002.0
        for late in (lambda: model.features(x), lambda: model.cloud(torch.zeros(2, 6)), stop):
            with pytest.raises(TooLate, match="give more --minutes"):
                late()
    model(x)


def test_an_attack_on_the_cloud_keeps_what_it_has(clock, tmp_path, monkeypatch):
    """Of two activations and both together there is time for the first alone: what was not read is named."""

    def fit(self, observer, **_):
        clock.now += 5.0 if observer.at_the_wire else 25.0
        return plain(self, observer)

    plain = RidgeAttack.fit
    monkeypatch.setattr(RidgeAttack, "fit", fit)
    subject = tiny_subject()
    cloud = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
    subject = replace(subject, model=SplitModel(subject.model.edge, subject.model.channel, cloud))
    result = run_audit(subject, subject.sets, tmp_path, minutes=1.0, suite=(RIDGE, CLOUD)).result
    found = next(one for one in result["attacks"] if one["name"] == "cloud:ridge")
    assert re.search(
        r"; reads \d \S+ \w+; its time was over before it read \d \S+ \w+ or \d .* and \d", found["reason"]
    )


def test_what_leaks_is_measured_in_a_hurry_where_there_is_no_time_for_more(clock, tmp_path, monkeypatch):
    from sfumato.attacks import measure_leakage

    asked = []

    def slow(*_, most=2000, quick=False, **__):
        asked.append((most, quick))
        clock.now += 5.0
        return leakage

    subject = tiny_subject(train=100, test=900)
    leakage = measure_leakage(subject.model, subject.sets.test.subset(range(8)), seed=0, quick=True)
    monkeypatch.setattr("sfumato.audit.run.measure_leakage", slow)
    for minutes, expected in ((1.0, 1), (6.0, 2), (20.0, 3)):
        asked.clear()
        run_audit(subject, subject.sets, tmp_path / str(minutes), minutes=minutes, suite=(RIDGE,))
        assert asked == [(400, True), (2000, True), (2000, False)][:expected]
