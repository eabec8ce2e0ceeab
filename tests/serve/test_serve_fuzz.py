"""A short fuzz of REST from its own description; `serve_fuzz.py` is the long one."""

import pytest
from serve_fuzz import rest
from serve_support import make_bundle, process


@pytest.mark.filterwarnings("ignore")
def test_whatever_the_description_allows_or_forbids_is_answered_or_refused(tmp_path):
    # A process of its own: hypothesis parses sources while it draws, which CPython 3.11 fails on beside other threads.
    with process(str(make_bundle(tmp_path / "tiny")), "--no-log-requests") as server:
        counts, inferred = rest(server.wait_for("listening")["rest"], 150)
    assert sum(counts.values()) > 100
    assert {200, 400, 404} <= set(counts)
    assert max(counts) <= 503  # and nothing but a deadline of the request's own, see serve_fuzz
    # The description tells what is accepted, not only what is not: 6 to 20 % are, as the draws fall.
    assert inferred[200] > 0
