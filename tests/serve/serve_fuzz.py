"""A long fuzz of a real server: `python tests/deploy/serve_fuzz.py --requests 20000`.

REST is drawn from its OpenAPI description by schemathesis, gRPC by hypothesis. Printed: how many requests had which
status, whether one was a failure of the server or hung, and how the server's memory grew.
"""

import argparse
import collections
import sys
import tempfile
import time
from pathlib import Path

import grpc
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from serve_support import make_bundle, process, resident_bytes

SECONDS = 10  # an answer that takes longer counts as a hang
LATE = "no thread was free before the deadline"


def drawn(operation):
    """What the description allows, what it forbids, and what it allows as JSON without a length of the JSON part.

    That header belongs to binary bodies alone, which OpenAPI cannot say: most JSON bodies would fail on it.
    """

    def without_length(case):
        case.headers.pop("Inference-Header-Content-Length", None)
        return case

    allowed, forbidden = operation.as_strategy(), operation.as_strategy(schemathesis.GenerationMode.NEGATIVE)
    json_alone = allowed.filter(lambda case: case.media_type in (None, "application/json")).map(without_length)
    return st.one_of(allowed, forbidden, json_alone)


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


def by_grpc(address, requests):
    """The same over gRPC; every status has to be one that blames the client."""
    from test_serve_grpc import NEAR, REQUESTS, answered_or_refused

    counts = collections.Counter()
    with grpc.insecure_channel(address) as channel:

        @seed(1)
        @settings(
            max_examples=requests,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(request=st.one_of(NEAR, REQUESTS, st.binary(max_size=60)))
        def send(request):
            counts["refused" if answered_or_refused(channel, request) is None else "answered"] += 1

        send()
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    wanted = parser.parse_args().requests
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder) / "tiny")
        with process(str(bundle), "--no-log-requests") as server:
            at = server.wait_for("listening")
            pid = server.process.pid
            rest(at["rest"], wanted // 20)
            by_grpc(at["grpc"], wanted // 20)
            before, began = resident_bytes(pid), time.monotonic()
            counts, inferred = rest(at["rest"], wanted // 2)
            between = resident_bytes(pid)
            calls = by_grpc(at["grpc"], wanted - wanted // 2)
            after, seconds = resident_bytes(pid), time.monotonic() - began
            failures = [event for event in server.events if event["event"] == "failure"]
    sys.stdout.write(
        f"REST {sum(counts.values())} requests: {dict(sorted(counts.items()))}\n"
        f"of them inference: {dict(sorted(inferred.items()))}\n"
        f"gRPC {sum(calls.values())} requests: {dict(calls)}\n"
        f"{seconds:.0f} s; failures in the log: {len(failures)}; resident memory "
        f"{before / 2**20:.1f} -> {between / 2**20:.1f} -> {after / 2**20:.1f} MiB\n"
    )


if __name__ == "__main__":
    main()
