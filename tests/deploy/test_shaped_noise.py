"""Noise with a shape on the device: what is added, what is refused, and what stays as it was without one."""

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from edge_support import FEATURE, KEY, STD, make_bundle, manifest_of, pixels_of

import sfumato
from sfumato.deploy import EdgeClient, ExportConfig, export_bundle
from sfumato.deploy.manifest import NOISE, AuditedChannel, AuditSpec, NoiseSpec
from sfumato.errors import BundleError, SfumatoWarning
from sfumato.files import sha256_of

D = math.prod(FEATURE)
RANDOM = np.random.default_rng(0)
SHAPES = {
    "diagonal": np.linspace(0.1, 0.9, D)[:, None],
    "full": np.hstack([np.zeros((D, 1)), RANDOM.normal(size=(D, D)) * 0.2]),
    "low rank": np.hstack([np.full((D, 1), 0.1), RANDOM.normal(size=(D, 2)) * 0.3]),
}


def shaped(folder: Path, shape: np.ndarray, *, declared: float | None = None, audit=None, **changes) -> Path:
    """A bundle with this noise; its feature is 0 for every image."""
    make_bundle(folder, gain=0.0, bits=None)
    (folder / NOISE).write_bytes(shape.astype("<f4").tobytes())
    std = declared or math.sqrt(float(np.square(shape).sum()) / D)
    manifest = manifest_of(folder, bits=None)
    manifest = msgspec.structs.replace(
        manifest,
        noise=NoiseSpec(std, (), shape.shape[1] - 1),
        files=manifest.files | {NOISE: sha256_of(folder / NOISE)},
        sizes=manifest.sizes | {NOISE: (folder / NOISE).stat().st_size},
        audit=audit,
        **changes,
    )
    manifest.save(folder)
    return folder


def audit(std: float, shape: str | None = None) -> AuditSpec:
    channel = AuditedChannel(std) if shape is None else AuditedChannel(std, noise_shape=shape)
    return AuditSpec("0" * 64, "target", channel, "headline")


@pytest.mark.parametrize("name", SHAPES)
def test_a_device_adds_noise_of_that_covariance(name, tmp_path):
    shape = SHAPES[name]
    with EdgeClient(shaped(tmp_path, shape), device_key=KEY) as client:
        sent = np.concatenate([client.release([pixels_of(seed)]) for seed in range(500)]).reshape(-1, D)
        again = client.release([pixels_of(0)]).reshape(D)
    wanted = np.diag(shape[:, 0] ** 2) + shape[:, 1:] @ shape[:, 1:].T
    assert np.allclose(np.cov(sent.T), wanted, atol=0.25 * wanted.max())
    assert np.array_equal(again, sent[0])


def test_half_the_noise_is_not_half_of_the_same_noise(tmp_path):
    """Two multiples of one noise would be solved for the feature."""
    sent = []
    for factor in (1.0, 0.5):
        with EdgeClient(shaped(tmp_path / str(factor), factor * SHAPES["full"]), device_key=KEY) as client:
            sent.append(np.concatenate([client.release([pixels_of(seed)]) for seed in range(200)]).ravel())
    assert abs(np.corrcoef(*sent)[0, 1]) < 0.1


class TestRefused:
    def opened(self, folder: Path) -> None:
        EdgeClient(folder, device_key=KEY).close()

    def test_numbers_that_were_changed(self, tmp_path):
        folder = shaped(tmp_path, SHAPES["full"])
        (folder / NOISE).write_bytes((SHAPES["full"] / 2).astype("<f4").tobytes())
        with pytest.raises(BundleError, match=r"noise.f32 is not the file that was exported"):
            self.opened(folder)

    @pytest.mark.parametrize("shape", [SHAPES["full"] / 10, np.full((D, 1), np.nan), np.zeros((D, 1))])
    def test_numbers_that_are_not_what_the_manifest_declares(self, shape, tmp_path):
        with pytest.raises(BundleError, match="where the manifest declares 0.5; do not use this bundle"):
            self.opened(shaped(tmp_path, shape, declared=0.5))

    def test_numbers_for_another_feature(self, tmp_path):
        with pytest.raises(BundleError, match=r"not those of 12 x 2 numbers"):
            self.opened(shaped(tmp_path, np.ones((D + 2, 2)), declared=1.0))

    def test_a_direction_below_the_white_noise_that_was_audited(self, tmp_path):
        shape = SHAPES["full"]
        lowest = float(np.linalg.svd(shape[:, 1:], compute_uv=False)[-1])
        self.opened(shaped(tmp_path / "as-much", shape, audit=audit(0.99 * lowest)))
        with pytest.raises(BundleError, match="its audit was made with"):
            self.opened(shaped(tmp_path / "less", shape, audit=audit(1.01 * lowest)))
        with pytest.raises(BundleError, match="its audit was made with"):
            self.opened(shaped(tmp_path / "bare", shape[:, :4], audit=audit(1e-3)))

    def test_another_shape_than_the_audited_one(self, tmp_path):
        folder = shaped(tmp_path / "first", SHAPES["full"])
        known = sha256_of(folder / NOISE)
        self.opened(shaped(tmp_path / "same", SHAPES["full"], audit=audit(9.0, known)))
        with pytest.raises(BundleError, match="not the shape that its audit was made with"):
            self.opened(shaped(tmp_path / "other", 2 * SHAPES["full"], audit=audit(0.1, known)))
        white = manifest_of(make_bundle(tmp_path / "white"), audit=audit(STD / 2, known))
        white.save(tmp_path / "white")
        with pytest.raises(BundleError, match="not the shape that its audit was made with"):
            self.opened(tmp_path / "white")


def test_a_bundle_with_white_noise_says_nothing_of_shapes(tmp_path):
    text = (make_bundle(tmp_path, audit=audit(STD)) / "manifest.json").read_text()
    assert "rank" not in text
    assert "noise_shape" not in text


def test_export_and_audit_agree_on_the_numbers(tmp_path):
    """The device's noise is that of the channel, number by number; an audit of another shape is passed over."""
    from sfumato.deploy.audited import _difference

    factor = torch.from_numpy(SHAPES["full"][:, 1:]).float()
    channel = sfumato.Channel(noise=factor)
    edge = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, D), torch.nn.Sigmoid())
    model = sfumato.SplitModel(edge, channel, torch.nn.Linear(D, 3)).eval()
    done = export_bundle(
        model, tmp_path / "bundle", ExportConfig("m", floats=True), classes="abc", image_shape=(3, 4, 4)
    )
    assert done.manifest.files[NOISE] == channel.noise.digest
    with EdgeClient(tmp_path / "bundle", device_key=KEY) as client:
        x = RANDOM.integers(0, 256, (500, 4, 4, 3), dtype=np.uint8)
        sent = np.concatenate([client.release([one]) for one in x])
    with torch.no_grad():
        clean = edge(torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255).numpy()
    wanted = (factor @ factor.T).numpy()
    assert np.allclose(np.cov((sent - clean).T), wanted, atol=0.25 * wanted.max())
    target = {
        "digest": "w",
        "versions": {"sfumato": sfumato.__version__},
        "channel": {
            "noise_std": channel.noise_std,
            "clip_norm": None,
            "quantize_bits": None,
            "low": 0.0,
            "high": 1.0,
            "transforms": [],
            "noise_shape": channel.noise.digest,
        },
    }
    assert _difference(target, "w", channel, 8) is None
    other = sfumato.Channel(noise=factor.flip(0))
    assert "another wire (noise_shape" in _difference(target, "w", other, 8)
    target["channel"].pop("noise_shape")
    assert "another wire (noise_shape None" in _difference(target, "w", channel, 8)


def test_export_says_that_a_direction_is_bare(tmp_path, monkeypatch):
    channel = sfumato.Channel(noise=torch.eye(D)[:, :4])
    edge = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, D), torch.nn.Sigmoid())
    model = sfumato.SplitModel(edge, channel, torch.nn.Linear(D, 3)).eval()
    monkeypatch.setattr("sfumato.deploy.export.to_onnx", lambda *_: b"")  # the warning comes first
    with pytest.warns(SfumatoWarning, match="directions without noise"), pytest.raises(BundleError):
        export_bundle(model, tmp_path / "bundle", ExportConfig("m"), classes="abc", image_shape=(3, 4, 4))
