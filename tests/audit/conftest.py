"""One audit that many tests look at."""

import pytest
from audit_cases import audit

from sfumato.attacks import Leakage


@pytest.fixture(scope="session")
def audited(tmp_path_factory):
    """Its folder, and what it found; nobody may change either."""
    folder = tmp_path_factory.mktemp("audit")
    return folder, audit(folder)


@pytest.fixture
def quick(monkeypatch):
    """For tests of anything else: what an audit measures without an attack is made up."""
    leakage = Leakage(0.1, 0.01, 60, 1, 2.0, 0.1, 0.9, None)
    for name in ("run", "texts"):
        monkeypatch.setattr(f"sfumato.audit.{name}.measure_leakage", lambda *_, **__: leakage)
    monkeypatch.setattr("sfumato.audit.run.measure_bounds", lambda *_, **__: [])
    monkeypatch.setattr("sfumato.audit.run.calibrate", lambda *_: {"psnr": 99.0, "by": "ridge", "size": [4, 4]})
