"""Noise: Gaussian to every test, the documented function of its key, safe from the attack that works on ONNX."""

import hashlib
import hmac
import math
import os
import struct
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from scipy import stats

from sfumato.deploy.noise import Stream, channel_identity, memoised_key
from sfumato.errors import ConfigError

COUNT = 200_000
KEYS = [bytes(32), bytes(range(32)), b"\xff" * 32]


@pytest.fixture(scope="module", params=KEYS, ids=["zeros", "counting", "ones"])
def sample(request):
    """From fixed keys, so that a test of chance passes or fails for good; even a bad key has to give good noise."""
    return Stream(request.param).normals(COUNT)


def test_moments(sample):
    x = sample.astype(np.float64)
    error = 4 / math.sqrt(COUNT)
    assert abs(x.mean()) < error
    assert abs(x.var() - 1) < error * math.sqrt(2)
    assert abs(stats.skew(x)) < error * math.sqrt(6)
    assert abs(stats.kurtosis(x)) < error * math.sqrt(24)


def test_distribution(sample):
    assert stats.kstest(sample.astype(np.float64), "norm").pvalue > 1e-3
    tails = np.abs(sample) > 4
    assert abs(tails.sum() - COUNT * 2 * stats.norm.sf(4)) < 5 * math.sqrt(COUNT * 2 * stats.norm.sf(4))


def test_no_correlation_within_and_between_the_halves(sample):
    """The two numbers of a Box-Muller pair stand half a stream apart, so lags around there matter too."""
    x = sample.astype(np.float64)
    for values in (x, x**2 - 1):
        spectrum = np.fft.rfft(values, 2 * COUNT)
        correlation = np.fft.irfft(np.abs(spectrum) ** 2)[:COUNT] / (values @ values)
        lags = [*range(1, 100), *range(COUNT // 2 - 50, COUNT // 2 + 50)]
        assert np.abs(correlation[lags]).max() < 4.5 / math.sqrt(COUNT)


def test_uniform_numbers_for_masks():
    u = Stream(KEYS[1]).uniforms(COUNT)
    assert u.dtype == np.float32
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u.astype(np.float64), "uniform").pvalue > 1e-3
    assert np.array_equal(u * 2**24, np.floor(u * 2**24))


def test_streams_of_neighbouring_keys_are_unrelated():
    rows = np.stack([Stream(bytes(31) + bytes([index])).normals(512) for index in range(64)])
    correlation = np.corrcoef(rows)[np.triu_indices(64, 1)]
    assert np.abs(correlation).max() < 5 / math.sqrt(512)


def chacha20(key: bytes, length: int) -> bytes:
    """RFC 8439, sections 2.1 to 2.4, with counter and nonce 0."""

    def quarter(x: list[int], a: int, b: int, c: int, d: int) -> None:
        for first, second, third, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[first] = (x[first] + x[second]) & 0xFFFFFFFF
            mixed = x[third] ^ x[first]
            x[third] = (mixed << bits | mixed >> (32 - bits)) & 0xFFFFFFFF

    out = b""
    for counter in range(-(-length // 64)):
        start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *struct.unpack("<8I", key), counter, 0, 0, 0]
        x = list(start)
        for _ in range(10):
            for column in range(4):
                quarter(x, column, 4 + column, 8 + column, 12 + column)
            for a, b, c, d in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
                quarter(x, a, b, c, d)
        out += struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(x, start, strict=True)))
    return out[:length]


def test_the_numbers_are_those_that_the_documentation_says():
    """ChaCha20 and Box-Muller, done again in plain Python."""
    key = os.urandom(32)
    assert chacha20(bytes(32), 4).hex() == "76b8e0ad"  # RFC 8439, appendix A.1
    words = struct.unpack("<20Q", chacha20(key, 160))
    u = [((word >> 11) + 1) / 2**53 for word in words]
    radii = [math.sqrt(-2 * math.log(value)) for value in u[:10]]
    angles = [2 * math.pi * value for value in u[10:]]
    wanted = [r * math.cos(a) for r, a in zip(radii, angles, strict=True)]
    wanted += [r * math.sin(a) for r, a in zip(radii, angles, strict=True)]
    stream = Stream(key)
    assert np.allclose(stream.normals(19), wanted[:19], rtol=1e-9, atol=1e-9)
    rest = struct.unpack("<3I", chacha20(key, 172)[160:])  # what follows in the stream is used for what is drawn next
    assert np.array_equal(stream.uniforms(3), np.float32([(word >> 8) / 2**24 for word in rest]))


def test_the_smallest_uniform_number_gives_a_finite_normal():
    stream = Stream(os.urandom(32))
    stream._keystream = SimpleNamespace(update=lambda zeros: zeros)
    assert np.allclose(stream.normals(2), [math.sqrt(2 * 53 * math.log(2)), 0], atol=1e-6)


def test_a_memoised_key_is_the_documented_function_of_device_channel_and_input():
    """Another clip or standard deviation under the same noise would be a second equation for the same feature."""
    given = {"encoder": "a" * 64, "std": 0.1, "clip_norm": 2.0}
    device, image = bytes(range(32)), b"image"
    key = memoised_key(device, channel_identity(**given), image)
    told = b"sfumato noise 2\n" + b"\xaa" * 32 + struct.pack("<dd", 0.1, 2.0) + hashlib.sha256(image).digest()
    assert key == hmac.new(device, told, "sha256").digest()
    changes = [{"encoder": "b" * 64}, {"std": 0.2}, {"clip_norm": 1.0}, {"clip_norm": None}]
    others = [memoised_key(device, channel_identity(**(given | change)), image) for change in changes]
    others += [memoised_key(bytes(32), channel_identity(**given), image)]
    others += [memoised_key(device, channel_identity(**given), b"imagf")]
    assert len({key, *others}) == 7


def test_a_key_of_another_length_is_refused():
    with pytest.raises(ConfigError, match="has 16 bytes; it needs 32"):
        Stream(bytes(16))


def onnx_noise(seed: int, count: int) -> np.ndarray:
    """What the real operator of ONNX Runtime draws; in production its seed is a 31-bit number from the clock."""
    node = helper.make_node("RandomNormalLike", ["x"], ["y"], seed=float(seed), mean=0.0, scale=1.0)
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    model = helper.make_model(
        helper.make_graph([node], "g", [shape], [out]), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.zeros(count, np.float32)})[0]


def predict(seeds: np.ndarray, count: int) -> np.ndarray:
    """What the operator draws first for each seed: a linear congruential generator and Marsaglia's polar method."""
    state = np.maximum(seeds % (2**31 - 1), 1).astype(np.uint64)
    found = np.full((len(seeds), count), np.nan, np.float32)
    filled = np.zeros(len(seeds), np.int64)
    for _ in range(6 * count):
        pair = []
        for _ in range(2):
            state = state * np.uint64(16807) % np.uint64(2**31 - 1)
            pair.append(np.float32(2) * ((state - 1).astype(np.float32) / np.float32(2**31 - 2)) - np.float32(1))
        square = pair[0] ** 2 + pair[1] ** 2
        taken = np.flatnonzero((square <= 1) & (square > 0) & (filled < count))
        scale = np.sqrt(-2 * np.log(square[taken]) / square[taken])
        for value in (pair[1], pair[0]):
            fits = filled[taken] < count
            rows = taken[fits]
            found[rows, filled[rows]] = value[rows] * scale[fits]
            filled[rows] += 1
    return found


def recover(values: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The seeds that explain four observed values."""
    return seeds[np.abs(predict(seeds, 4) - values[:4]).max(axis=1) < 1e-4]


def test_the_seed_recovery_that_breaks_onnx_noise_fails_on_ours():
    """A state space of 2^17 instead of 2^31 seeds, to take a second instead of minutes; the attack is the same."""
    seeds = np.arange(1, 2**17)
    secret = 98_765
    observed = onnx_noise(secret, 40)
    assert recover(observed, seeds).tolist() == [secret]
    assert np.allclose(predict(np.array([secret]), 40), observed, atol=1e-4), "all further noise is known"
    ours = [Stream(key).normals(40) for key in (*KEYS, os.urandom(32))]
    assert [recover(values, seeds).tolist() for values in ours] == [[], [], [], []]
    assert all(recover(values[4 * at :], seeds).size == 0 for values in ours[:1] for at in range(4))
