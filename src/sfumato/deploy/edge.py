"""The client on the device: image in, prediction out, and nothing on the wire but the noisy feature."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from sfumato.deploy.answers import Prediction, predictions
from sfumato.deploy.connection import Remote
from sfumato.deploy.device_key import load_device_key
from sfumato.deploy.graph import check_graph
from sfumato.deploy.manifest import DECODER, ENCODER, NOISE, Manifest
from sfumato.deploy.messages import Tensors
from sfumato.deploy.noise import KEY_BYTES, Stream, channel_identity, memoised_key
from sfumato.deploy.preprocess import prepare
from sfumato.deploy.release import Release, noise_shape
from sfumato.deploy.runtime import check_signature, run, session_of
from sfumato.errors import BundleError, ConfigError

__all__ = ["EdgeClient", "check_noise"]


class EdgeClient:
    """Encodes on the device, clips, adds noise, rounds to levels, asks a server.

    The encoder gives the clean feature; what happens to it afterwards is this code's doing, by the manifest's numbers,
    so that no network can forge or shrink the noise. Everything is checked before anything is sent: the signature if
    one is required, the manifest, the encoder's digest and operators, and that the noise is not below what was audited.
    A query fails, and sends nothing, if the noise cannot be made or the feature is not finite or outside its range.

    Needs numpy, onnxruntime, cryptography and msgspec, and Pillow for image files. torch is not imported. A client may
    be used by several threads, and by forked children, each of which opens a connection of its own.

    Args:
        bundle: folder with `manifest.json` and `encoder.onnx`.
        url: of the server, such as `http://127.0.0.1:8000`; None runs the bundle's own decoder in this process.
        transport: `http`, the only one.
        token: bearer token.
        ca: PEM file of the authority that signed the server's certificate.
        cert: PEM files (certificate chain, private key) that the client shows.
        device_key: path of the device's secret, or its 32 bytes; None takes `~/.config/sfumato/device.key`. A missing
            file is made.
        require_signature: Ed25519 public key (path of a PEM file with one or several, PEM bytes or key object), or a
            list of these, any one of which must have signed the bundle.
        allow_no_noise: accept a bundle that adds no noise.
        timeout: seconds for one query, retries and pauses included.
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
        allow_no_noise: bool = False,
        timeout: float = 10.0,
        retries: int = 3,
    ) -> None:
        if transport != "http":
            raise ConfigError(f"the client asks over http only, not {transport}; leave the transport out")
        folder = Path(bundle)
        self.manifest = manifest = Manifest.load(folder, require_signature=require_signature, files=())
        shape = noise_shape(folder, manifest)
        check_noise(manifest, shape, allow_no_noise=allow_no_noise)
        self._shape = (1, *manifest.feature.shape)
        self._session = _session(folder, manifest)
        self._channel = Release(manifest, shape)
        # Not the manifest's digest: the same channel under another name has to repeat its noise as well.
        own = (manifest.files[ENCODER], manifest.noise.std, manifest.clip_norm, manifest.files.get(NOISE, ""))
        self._identity = channel_identity(*own)
        self._device_key = load_device_key(device_key)
        Stream(bytes(KEY_BYTES))  # without the package for the noise nothing begins
        self._decoder: _Decoder = (
            _OwnDecoder(folder, manifest)
            if url is None
            else Remote(url, token=token, ca=ca, cert=cert, timeout=timeout, retries=retries)
        )

    def predict(self, image: Any) -> Prediction:
        """Ask about one image.

        Args:
            image: path of a file, Pillow image, uint8 pixels (H, W) or (H, W, C), or float32 (C, H, W) in [0, 1].

        Raises:
            DataError: it is no image that the encoder takes.
            FeatureError: the encoder gave NaN or a value outside its range; nothing was sent.
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
        return predictions(self._decoder.ask(self.manifest, feature), self.manifest, len(feature))

    def release(self, images: Sequence[Any]) -> npt.NDArray[Any]:
        """Exactly what would be sent for these images: (n, *feature) in the manifest's datatype.

        Raises:
            SfumatoError: as `predict`.
        """
        prepared = [prepare(image, self.manifest.input) for image in images]
        # One image at a time: with larger batches the last bits of an image's feature would depend on its neighbours,
        # and a repeat would not be an exact one.
        released = [self._release(image) for image in prepared]
        return released[0] if len(released) == 1 else np.concatenate(released)

    def close(self) -> None:
        """Close the connections."""
        self._decoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _release(self, image: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        manifest, count = self.manifest, math.prod(self._shape)
        stream = Stream(memoised_key(self._device_key, self._identity, image.data))
        normals = stream.normals(self._channel.draws)
        given = {manifest.input.name: image}
        for name in manifest.noise.uniforms:
            given[name] = stream.uniforms(count).reshape(self._shape)
        return self._channel(run(self._session, given, ENCODER), normals)


class _Decoder(Protocol):
    def ask(self, manifest: Manifest, feature: npt.NDArray[Any]) -> Tensors: ...

    def close(self) -> None: ...


class _OwnDecoder:
    """The bundle's own decoder, in this process; it answers all logits, whatever a server would reveal."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        model = manifest.read_file(folder, DECODER)
        check_graph(model, DECODER)
        self._session = session_of(model, DECODER)

    def ask(self, manifest: Manifest, feature: npt.NDArray[Any]) -> Tensors:
        return {manifest.output.name: run(self._session, {manifest.feature.name: feature}, DECODER)}

    def close(self) -> None:
        pass


def check_noise(
    manifest: Manifest, shape: npt.NDArray[np.float32] | None = None, *, allow_no_noise: bool = False
) -> None:
    """Refuse a bundle whose noise would not protect.

    Args:
        manifest: of the bundle.
        shape: of `release.noise_shape`.
        allow_no_noise: accept a bundle that adds none.

    Raises:
        BundleError: its standard deviation is zero and nobody allowed that, or in some direction it is below what was
            audited. Noise with a shape passes where it is the audited one, number by number, or nowhere below white
            noise that was audited.
    """
    std = manifest.noise.std
    if std == 0 and not allow_no_noise:
        raise BundleError(
            "this bundle adds no noise, so nothing would protect what is sent; export a run with noise, or allow it by "
            "name (allow_no_noise, --allow-no-noise)"
        )
    if manifest.audit is None:
        return
    audited, known = manifest.audit.channel.noise_std, manifest.audit.channel.noise_shape
    if known is not UNSET and known == manifest.files.get(NOISE):
        return
    if known is not UNSET:
        raise BundleError(
            "this bundle's noise has not the shape that its audit was made with; do not use it, or audit the run as it "
            "is and export it again"
        )
    if shape is not None:
        std = float(shape[:, 0].min())
        if std == 0 and shape.shape[1] > len(shape):
            std = float(np.linalg.svd(shape[:, 1:].astype(np.float64), compute_uv=False)[-1])
    if std < audited:
        raise BundleError(
            f"this bundle adds noise of standard deviation {std:g}, and its audit was made with {audited:g}; do not "
            "use it, or audit the run as it is and export it again"
        )


def _session(folder: Path, manifest: Manifest) -> Any:
    model = manifest.read_file(folder, ENCODER)
    check_graph(model, ENCODER)
    session = session_of(model, ENCODER)
    shapes: dict[str, tuple[int, ...]] = {manifest.input.name: manifest.input.shape}
    shapes |= dict.fromkeys(manifest.noise.uniforms, manifest.feature.shape)
    wanted = {name: ("tensor(float)", shape) for name, shape in shapes.items()}
    check_signature(session, wanted, (manifest.feature.name, manifest.feature.shape), ENCODER)
    return session
