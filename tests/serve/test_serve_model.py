"""What a server finds out about a decoder when it loads it."""

import time

import numpy as np
import pytest
from serve_support import CLASSES, make_bundle

from sfumato.deploy.server.model import Model
from sfumato.deploy.server.settings import ServeConfig


@pytest.mark.parametrize(
    ("fixed", "each", "gains"), [(4e-3, 0.0, True), (4e-3, 1e-3, True), (0.0, 6e-3, False), (5e-4, 10e-3, False)]
)
def test_whether_rows_are_cheaper_together_is_measured(tmp_path, monkeypatch, fixed, each, gains):
    real = Model.run

    def slow(self, features):
        time.sleep(fixed + each * len(features))
        return real(self, features)

    monkeypatch.setattr(Model, "run", slow)
    bundle = make_bundle(tmp_path / "tiny")
    assert Model(bundle, ServeConfig((bundle,))).gains_by_batching is gains


def test_a_slow_decoder_is_not_kept_waiting_for_that(tmp_path, monkeypatch):
    rows = []

    def slow(_, features):
        rows.append(len(features))
        time.sleep(0.12 * len(features))
        return np.zeros((len(features), CLASSES), np.float32)

    monkeypatch.setattr(Model, "run", slow)
    bundle = make_bundle(tmp_path / "tiny")
    assert not Model(bundle, ServeConfig((bundle,))).gains_by_batching
    assert rows == [1, 2, 1, 2]  # one and two rows whether it works, and once more each for the time
