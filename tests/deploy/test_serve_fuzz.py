"""A short fuzz of REST from its own description; `serve_fuzz.py` is the long one."""

import pytest
from serve_fuzz import rest
from serve_support import make_bundle, running


@pytest.mark.filterwarnings("ignore")
def test_whatever_the_description_allows_or_forbids_is_answered_or_refused(tmp_path):
    with running(make_bundle(tmp_path / "tiny")) as server:
        counts, inferred = rest(server.rest, 60)
    assert sum(counts.values()) > 40
    assert {200, 400, 404} <= set(counts)
    assert max(counts) <= 503  # and nothing but a deadline of the request's own, see serve_fuzz
    assert inferred[200] > 0.05 * sum(inferred.values())  # the description tells what is accepted, not only what is not
