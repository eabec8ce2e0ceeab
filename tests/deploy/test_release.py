"""From clean feature to wire: clip, noise of the stated size, and floats that tell nothing by their low bits."""

import math

import msgspec
import numpy as np
import pytest
from edge_support import FEATURE, STD, make_bundle, manifest_of

from sfumato.deploy.manifest import FeatureSpec, NoiseSpec, QuantizationSpec
from sfumato.deploy.noise import Stream
from sfumato.deploy.release import Release, grid, quantise
from sfumato.errors import FeatureError

SHAPE = (1, *FEATURE)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return manifest_of(make_bundle(tmp_path_factory.mktemp("bundle")))


def channel(manifest, **changes):
    """Floats without a declared range, changed."""
    changes = {"quantization": None, "feature": FeatureSpec("feature", FEATURE, "FP32")} | changes
    return Release(msgspec.structs.replace(manifest, **changes))


def released(manifest, value, count, **changes):
    send = channel(manifest, **changes)
    stream = Stream(bytes(range(32)))
    size = math.prod(SHAPE)
    feature = np.full(SHAPE, value, np.float32)
    return np.concatenate([send(feature, stream.normals(size).reshape(SHAPE)).ravel() for _ in range(count)])


@pytest.mark.parametrize("std", [0.1, 0.025, 1 / 16, 3.7, 1e-6])
def test_the_floats_that_can_occur_do_not_depend_on_the_feature(manifest, std):
    """One FP32 value of `z_hat + noise` with finer low bits than z_hat's own proves that the feature was 0.

    On the grid both features give the same floats: multiples of the step, each exactly.
    """
    step = grid(std)
    assert math.log2(step) == int(math.log2(step))
    assert std / 512 < step <= std / 256
    for value in (0.0, 5 * std, 0.3 * std):
        sent = released(manifest, value, 200, noise=NoiseSpec(std))
        assert sent.dtype == np.float32
        steps = sent.astype(np.float64) / step
        assert np.array_equal(steps, np.rint(steps))
        assert abs((sent - value).std() / std - 1) < 0.05
    # Without the grid, a share of the values can only stem from 0.
    noise = Stream(bytes(range(32))).normals(2000)
    plain = (np.float32(0) + (std * noise).astype(np.float32)).astype(np.float64)
    finer = plain / np.spacing(np.float32(5 * std)) % 1 != 0
    assert finer.mean() > 0.1


def test_levels_are_the_nearest_ones():
    levels = QuantizationSpec(3, -1.0, 2.5)
    values = np.array([-9, -1, -0.76, -0.74, 0, 2.2, 2.3, 99], np.float64)
    assert quantise(values, levels).tolist() == [0, 0, 0, 1, 2, 6, 7, 7]
    assert (levels.low, levels.low + 7 * levels.width) == (-1.0, 2.5)


def test_the_clip_is_the_devices(manifest):
    feature = np.arange(12, dtype=np.float32).reshape(SHAPE)
    zero = np.zeros(SHAPE)
    for radius in (1.0, 100.0):
        sent = channel(manifest, noise=NoiseSpec(0.0), clip_norm=radius)(feature, zero)
        wanted = feature * min(1.0, radius / math.sqrt(506))  # 0 + 1 + 4 + ... + 121
        assert np.allclose(sent, wanted, rtol=1e-6)


@pytest.mark.parametrize("value", [1.01, -0.01, np.nan, np.inf])
def test_outside_the_range_nothing_is_released(manifest, value):
    feature = np.full(SHAPE, 0.5, np.float32)
    zero = np.zeros(SHAPE)
    ranged = {"feature": FeatureSpec("feature", FEATURE, "FP32", (0.0, 1.0))}
    for edge in (0.0, 1.0):
        feature.ravel()[3] = edge
        channel(manifest, **ranged)(feature, zero)
    feature.ravel()[3] = value
    with pytest.raises(FeatureError, match="nothing was sent"):
        channel(manifest, **ranged)(feature, zero)


def test_a_feature_that_swallows_its_noise_is_not_sent(manifest):
    with pytest.raises(FeatureError, match="so large that float32 cannot hold the noise"):
        channel(manifest)(np.full(SHAPE, 1e5 * STD * 2, np.float32), np.zeros(SHAPE))
