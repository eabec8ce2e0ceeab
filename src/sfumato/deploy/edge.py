"""The client on the device: image in, prediction out, and nothing on the wire but the noisy feature."""

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sfumato.deploy.answers import Prediction, predictions
from sfumato.deploy.budget import Budget
from sfumato.deploy.device_key import load_device_key
from sfumato.deploy.graph import check_graph
from sfumato.deploy.manifest import ENCODER, Manifest
from sfumato.deploy.noise import Stream, fresh_key, input_digest, memoised_key
from sfumato.deploy.preprocess import prepare
from sfumato.deploy.quantise import quantise
from sfumato.deploy.runtime import check_signature, session_of
from sfumato.deploy.transport import Security, Transport, connect
from sfumato.errors import BundleError, ConfigError, FeatureError

__all__ = ["EdgeClient"]

_TEST_KEY = bytes(range(32))  # of the numbers that test the encoder; nothing that they make is ever sent


class EdgeClient:
    """Encodes on the device, adds noise, rounds to levels, asks a server.

    Everything is checked before anything is sent: the signature if one is required, the manifest, the encoder's hash,
    that the encoder cannot draw random numbers itself, and, by running it, that it adds the noise that the manifest
    states. A query fails, and sends nothing, if the noise cannot be made or the feature is not finite.

    Needs numpy, onnxruntime and cryptography; Pillow for image files, grpcio for gRPC. torch is not imported.

    Args:
        bundle: folder with `manifest.json` and `encoder.onnx`.
        url: of the server, such as `http://127.0.0.1:8000`, or `127.0.0.1:8001` for gRPC; None runs the bundle's own
            decoder in this process.
        transport: `http` or `grpc`.
        token: bearer token.
        ca: PEM file of the authority that signed the server's certificate.
        cert: PEM files (certificate chain, private key) that the client shows.
        device_key: path of the device's secret, or its 32 bytes; None takes `~/.config/sfumato/device.key`. A missing
            file is made.
        require_signature: Ed25519 public key (path, PEM bytes or key object) that must have signed the bundle.
        budget: with fresh noise, queries allowed for one input.
        budget_file: with fresh noise, keeps the counts beyond this process.
        allow_no_noise: accept a bundle that adds no noise.
        timeout: seconds for one answer.
        retries: how often the same bytes are sent again if the server is busy or cannot be reached.

    Raises:
        BundleError: the bundle is damaged, forged, not signed as required, or does not protect.
        ConfigError: a setting makes no sense, or a package is missing.
    """

    def __init__(
        self,
        bundle: Path | str,
        url: str | None = None,
        *,
        transport: str = "http",
        token: str | None = None,
        ca: Path | str | None = None,
        cert: tuple[Path | str, Path | str] | None = None,
        device_key: Path | str | bytes | None = None,
        require_signature: Any = None,
        budget: int = 4,
        budget_file: Path | str | None = None,
        allow_no_noise: bool = False,
        timeout: float = 10.0,
        retries: int = 3,
    ) -> None:
        folder = Path(bundle)
        self.manifest = Manifest.load(folder, require_signature=require_signature, files=())
        self._shape = (1, *self.manifest.feature.shape)
        self._count = math.prod(self._shape)
        self._input, self._outputs = self.manifest.input.name, [self.manifest.feature.name]
        self._uniforms, self._levels = self.manifest.noise.uniforms, self.manifest.quantization
        model = self.manifest.read_file(folder, ENCODER)
        check_graph(model, ENCODER)
        self._session = session_of(model, ENCODER)
        self._check_inputs()
        self._check_noise(allow_no_noise)
        # Not the manifest's digest: the same encoder under another name has to repeat its noise as well.
        self._identity = self.manifest.files[ENCODER]
        self._device_key = load_device_key(device_key)
        self._budget: Budget | None = None
        if self.manifest.noise.mode == "fresh":
            self._budget = Budget(budget, None if budget_file is None else Path(budget_file))
        elif budget_file is not None:
            raise ConfigError("a budget file belongs to fresh noise, and this bundle's noise is memoised; leave it out")
        self._lock = threading.Lock()
        self._transport = self._connect(
            folder, url, transport, Security(token, _path(ca), None if cert is None else _pair(cert)), timeout, retries
        )

    def predict(self, image: Any) -> Prediction:
        """Ask about one image.

        Args:
            image: path of a file, Pillow image, uint8 pixels (H, W) or (H, W, C), or float32 (C, H, W) in [0, 1].

        Raises:
            DataError: it is no image that the encoder takes.
            FeatureError: the encoder gave NaN, or the budget of this input is used up; nothing was sent.
            RemoteError: the server cannot be reached or refuses.
        """
        return self.predict_batch([image])[0]

    def predict_batch(self, images: Sequence[Any]) -> list[Prediction]:
        """Ask about several images in one query.

        Raises:
            SfumatoError: as `predict`.
        """
        if not len(images):
            return []
        feature = self.release(images)
        return predictions(self._transport.ask(self.manifest, feature), self.manifest, len(feature))

    def release(self, images: Sequence[Any]) -> npt.NDArray[Any]:
        """Exactly what would be sent for these images: (n, *feature) in the manifest's datatype.

        With fresh noise every call takes one query of each image off its budget.

        Raises:
            SfumatoError: as `predict`.
        """
        prepared = [prepare(image, self.manifest.input) for image in images]
        # One image at a time: with larger batches the last bits of an image's feature would depend on its neighbours,
        # and a repeat would not be an exact one.
        released = [self._release(image) for image in prepared]
        return released[0] if len(released) == 1 else np.concatenate(released)

    def close(self) -> None:
        """Close the connection and the budget file."""
        self._transport.close()
        if self._budget is not None:
            self._budget.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _release(self, image: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        if self._budget is None:
            key = memoised_key(self._device_key, self._identity, image.data)
        else:
            with self._lock:
                self._budget.charge(input_digest(self._device_key, image.data))
            key = fresh_key()
        noisy = self._encode(image, Stream(key))
        if not _finite(noisy):
            raise FeatureError("the encoder gives NaN or infinite features for this image; nothing was sent")
        return noisy if self._levels is None else quantise(noisy, self._levels)

    def _encode(self, image: npt.NDArray[np.float32], stream: Stream) -> npt.NDArray[np.float32]:
        given = {self._input: image, "noise": stream.normals(self._count).reshape(self._shape)}
        for name in self._uniforms:
            given[name] = stream.uniforms(self._count).reshape(self._shape)
        return self._run(given)

    def _run(self, given: dict[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        feature: npt.NDArray[np.float32] = self._session.run(self._outputs, given)[0]
        return feature

    def _check_inputs(self) -> None:
        manifest = self.manifest
        shapes = {manifest.input.name: manifest.input.shape, "noise": manifest.feature.shape}
        shapes |= dict.fromkeys(manifest.noise.uniforms, manifest.feature.shape)
        wanted = {name: ("tensor(float)", shape) for name, shape in shapes.items()}
        check_signature(self._session, wanted, (manifest.feature.name, manifest.feature.shape), ENCODER)

    def _check_noise(self, allow_no_noise: bool) -> None:
        """Run the encoder with and without noise: the difference has to be `std noise`."""
        std, shape = self.manifest.noise.std, self._shape
        if std == 0 and not allow_no_noise:
            raise BundleError(
                "this bundle adds no noise, so nothing would protect what is sent; export a run with noise, or allow "
                "it by name (allow_no_noise)"
            )
        noise = Stream(_TEST_KEY).normals(math.prod(shape)).reshape(shape)
        given = {self.manifest.input.name: np.full((1, *self.manifest.input.shape), 0.5, np.float32)}
        given |= {name: np.full(shape, 1 - 2**-24, np.float32) for name in self.manifest.noise.uniforms}
        quiet, noisy = self._run(given | {"noise": np.zeros_like(noise)}), self._run(given | {"noise": noise})
        rounding = 1e-6 * max(1.0, float(np.abs(quiet).max()))
        if not np.allclose(noisy - quiet, std * noise, rtol=1e-3, atol=rounding):
            raise BundleError(f"{ENCODER} does not add the noise that its manifest states; do not use this bundle")

    def _connect(
        self, folder: Path, url: str | None, transport: str, security: Security, timeout: float, retries: int
    ) -> Transport:
        if url is not None:
            return connect(transport, url, security, timeout=timeout, retries=retries)
        from sfumato.deploy.transport.offline import OfflineTransport

        return OfflineTransport(folder, self.manifest)


def _finite(values: npt.NDArray[np.float32]) -> bool:
    """Whether no value is NaN or infinite; the sum of squares tells in one pass unless it overflows."""
    flat = values.reshape(-1)
    return math.isfinite(flat.dot(flat)) or bool(np.isfinite(values).all())


def _path(value: Path | str | None) -> Path | None:
    return None if value is None else Path(value)


def _pair(cert: tuple[Path | str, Path | str]) -> tuple[Path, Path]:
    chain, key = cert
    return Path(chain), Path(key)
