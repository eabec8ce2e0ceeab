"""A long fuzz of a real server: `python tests/serve/serve_fuzz.py --requests 20000`.

Requests are drawn from the OpenAPI description by schemathesis. Printed: how many of them had which status,
whether one was a failure of the server or hung, and how the worker's memory grew.
"""

import argparse
import collections
import sys
import tempfile
import time
from pathlib import Path

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from serve_support import children, make_bundle, process, resident_bytes

SECONDS = 10  # an answer that takes longer counts as a hang
LATE = "no thread was free before the deadline"


FINITE = st.floats(allow_nan=False, allow_infinity=False)  # the client sends no other ones
NUMBERS = FINITE | st.integers() | st.none() | st.lists(FINITE, max_size=2) | st.text(max_size=3)
TENSOR = {
    "name": st.just("feature") | st.text(max_size=8),
    "datatype": st.just("FP32") | st.sampled_from(["FP64", "UINT8", ""]),
    "shape": st.just([1, 8]) | st.lists(st.integers(), max_size=3),
    "data": st.lists(st.floats(-10, 10, width=32), min_size=8, max_size=8) | st.lists(NUMBERS, max_size=9),
}
# One that works, and what a slip of the pen or of the mind makes of it; the description names no tensor of a bundle.
NEAR = st.fixed_dictionaries(
    {"inputs": st.lists(st.fixed_dictionaries(TENSOR), min_size=1, max_size=1) | st.lists(st.fixed_dictionaries({}))},
    optional={"id": st.text(max_size=5) | st.integers(), "parameters": st.dictionaries(st.text(max_size=3), NUMBERS)},
)


def drawn(operation):
    """What the description allows, what it forbids, and nearly what the bundle takes; half of it of a served model."""

    def of_ours(case):
        case.path_parameters = {"model": "tiny", "version": "1"}
        return case

    def with_body(case, body):
        case.headers.pop("Inference-Header-Content-Length", None)
        case.body, case.media_type = body, "application/json"
        return of_ours(case)

    allowed, forbidden = operation.as_strategy(), operation.as_strategy(schemathesis.GenerationMode.NEGATIVE)
    choices = [allowed, forbidden]
    if operation.path_parameters:
        choices += [allowed.map(of_ours), forbidden.map(of_ours)]
    if operation.path.endswith("/infer"):
        choices += [st.builds(with_body, allowed, NEAR)] * 2
    return st.one_of(*choices)


def rest(address, requests):
    """Send that many requests to all operations; give counts by status, and those of inference alone."""
    counts, inferred = collections.Counter(), collections.Counter()
    schema = schemathesis.openapi.from_url(f"http://{address}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    # An operation without parameters has few different requests; those on inference make up for them.
    inference = [one for one in operations if one.path.endswith("/infer")]
    for operation in operations:
        share = 1.0 / len(inference) if operation in inference else 0.1 / (len(operations) - len(inference))

        @seed(1)
        @settings(
            max_examples=max(1, round(requests * share)),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=drawn(operation))
        def send(case):
            response = case.call(timeout=SECONDS)
            counts[response.status_code] += 1
            inferred[response.status_code] += case.path.endswith("/infer")
            if response.status_code == 503 and LATE in response.text:
                return  # by design: the request itself asked to wait no longer
            error = response.status_code >= 400 and "/health/" not in case.path and not case.path.endswith("/ready")
            if response.status_code >= 500 or (error and list(response.json()) != ["error"]):
                raise AssertionError(f"{response.status_code} {response.text[:200]} for {case.as_curl_command()[:500]}")

        send()
    return counts, +inferred


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    wanted = parser.parse_args().requests
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder) / "tiny")
        with process(str(bundle), "--no-log-requests") as server:
            at = server.wait_for("listening")
            (pid,) = children(server.process.pid)
            rest(at["rest"], wanted // 20)
            before, began = resident_bytes(pid), time.monotonic()
            counts, inferred = rest(at["rest"], wanted)
            after, seconds = resident_bytes(pid), time.monotonic() - began
            failures = [event for event in server.events if event["event"] == "failure"]
    sys.stdout.write(
        f"{sum(counts.values())} requests: {dict(sorted(counts.items()))}\n"
        f"of them inference: {dict(sorted(inferred.items()))}\n"
        f"{seconds:.0f} s; failures in the log: {len(failures)}; resident memory "
        f"{before / 2**20:.1f} -> {after / 2**20:.1f} MiB\n"
    )


if __name__ == "__main__":
    main()
