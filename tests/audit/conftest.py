"""One audit that many tests look at."""

import pytest
from audit_cases import audit


@pytest.fixture(scope="session")
def audited(tmp_path_factory):
    """Its folder, and what it found; nobody may change either."""
    folder = tmp_path_factory.mktemp("audit")
    return folder, audit(folder)
