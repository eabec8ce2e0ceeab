"""What a server finds out about a decoder when it loads it."""

import time

import pytest
from serve_support import make_bundle

from sfumato.deploy.server.model import Model
from sfumato.deploy.server.settings import ServeConfig


@pytest.mark.parametrize(
    ("fixed", "each", "gains"), [(4e-3, 0.0, True), (4e-3, 1e-3, True), (0.0, 1e-3, False), (1e-3, 4e-3, False)]
)
def test_whether_rows_are_cheaper_together_is_measured(tmp_path, monkeypatch, fixed, each, gains):
    real = Model.run

    def slow(self, features):
        time.sleep(fixed + each * len(features))
        return real(self, features)

    monkeypatch.setattr(Model, "run", slow)
    bundle = make_bundle(tmp_path / "tiny")
    assert Model(bundle, ServeConfig((bundle,))).gains_by_batching is gains
