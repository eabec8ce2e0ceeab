"""The client on the device: image or text in, prediction out, and nothing on the wire but the noisy feature."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from sfumato.deploy.connection import Remote, Tensors
from sfumato.deploy.device_key import load_device_key
from sfumato.deploy.graph import run, session_of
from sfumato.deploy.manifest import DECODER, ENCODER, NOISE, Manifest
from sfumato.deploy.noise import KEY_BYTES, Stream, channel_identity, memoised_key
from sfumato.deploy.preprocess import prepare
from sfumato.deploy.release import Release, noise_shape
from sfumato.errors import BundleError, ConfigError, RemoteError

__all__ = ["EdgeClient", "Prediction", "check_noise"]


@dataclass(frozen=True)
class Prediction:
    """What the decoder says about one image.

    Attributes:
        label: name of the likeliest class.
        index: its number.
        probabilities: probability by class name, likeliest first, as far as the server reveals them; empty where it
            gives the label alone.
    """

    label: str
    index: int
    probabilities: dict[str, float]


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
        self._session = session_of(manifest, manifest.read_file(folder, ENCODER), ENCODER)
        self._channel = Release(manifest, shape)
        # Not the manifest's digest: the same channel under another name has to repeat its noise as well.
        own = (manifest.files[ENCODER], manifest.noise.std, manifest.clip_norm, manifest.files.get(NOISE, ""))
        self._identity = channel_identity(*own)
        self._device_key = load_device_key(device_key)
        Stream(bytes(KEY_BYTES))  # without the package for the noise nothing begins
        self._decoder: Remote | _OwnDecoder = (
            _OwnDecoder(folder, manifest)
            if url is None
            else Remote(url, token=token, ca=ca, cert=cert, timeout=timeout, retries=retries)
        )

    def predict(self, image: Any) -> Prediction:
        """Ask about one image.

        Args:
            image: path of a file, Pillow image, uint8 pixels (H, W) or (H, W, C), or float32 (C, H, W) in [0, 1]; of a
                model of texts its tokens (L,) as whole numbers, or the path of an .npy file that holds them.

        Raises:
            DataError: it is no image, or text, that the encoder takes.
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
        return _predictions(self._decoder.ask(self.manifest, feature), self.manifest, len(feature))

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

    def _release(self, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        manifest, count = self.manifest, math.prod(self._shape)
        stream = Stream(memoised_key(self._device_key, self._identity, image.data))
        normals = stream.normals(self._channel.draws)
        given = {manifest.input.name: image}
        for name in manifest.noise.uniforms:
            given[name] = stream.uniforms(count).reshape(self._shape)
        return self._channel(run(self._session, given, ENCODER), normals)


class _OwnDecoder:
    """The bundle's own decoder, in this process; it answers all logits, whatever a server would reveal."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._session = session_of(manifest, manifest.read_file(folder, DECODER), DECODER)

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
    audited = manifest.audit.channel
    remedy = "do not use it, or audit the run as it is and export it again"
    shaped = audited.noise_shape is not UNSET
    if shaped and audited.noise_shape != manifest.files.get(NOISE):
        raise BundleError(f"this bundle's noise has not the shape that its audit was made with; {remedy}")
    if shape is not None and not shaped:  # nowhere below the white noise that was audited
        std = float(shape[:, 0].min())
        if std == 0 and shape.shape[1] > len(shape):
            std = float(np.linalg.svd(shape[:, 1:].astype(np.float64), compute_uv=False)[-1])
    if not shaped and std < audited.noise_std:
        raise BundleError(
            f"this bundle adds noise of standard deviation {std:g}, and its audit was made with {audited.noise_std:g}; "
            f"{remedy}"
        )
    if audited.clip_norm is not None and (manifest.clip_norm or math.inf) > audited.clip_norm:
        raise BundleError(
            f"this bundle clips to {manifest.clip_norm}, and its audit was made with {audited.clip_norm:g}; {remedy}"
        )


def _predictions(outputs: Mapping[str, npt.NDArray[Any]], manifest: Manifest, count: int) -> list[Prediction]:
    """One prediction for each image, from `logits` (n, classes) or `indices` (n, k); `probabilities` are optional."""
    classes = len(manifest.classes)
    logits = outputs.get(manifest.output.name)
    if logits is not None:
        if logits.shape != (count, classes) or logits.dtype != np.float32 or not np.isfinite(logits).all():
            raise _unfit(f"logits are {logits.dtype} {logits.shape}, or not finite")
        odds = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        shares = odds / odds.sum(axis=1, keepdims=True)
        order = np.argsort(-logits, axis=1, kind="stable")
        return [_prediction(manifest, row, share[row]) for row, share in zip(order, shares, strict=True)]
    indices, shares = outputs.get("indices"), outputs.get("probabilities", np.zeros((count, 0), np.float32))
    if (
        indices is None
        or indices.dtype != np.int64
        or indices.ndim != 2
        or len(indices) != count
        or not 1 <= indices.shape[1] <= classes
        or indices.min() < 0
        or indices.max() >= classes
        or shares.shape not in ((count, 0), indices.shape)
        or not np.isfinite(shares).all()
    ):
        raise _unfit(f"it holds {', '.join(f'{name} {part.shape}' for name, part in outputs.items()) or 'nothing'}")
    return [_prediction(manifest, row, share) for row, share in zip(indices, shares, strict=True)]


def _prediction(manifest: Manifest, order: npt.NDArray[np.int64], shares: npt.NDArray[Any]) -> Prediction:
    numbers = order.tolist()
    names = [manifest.classes[number] for number in numbers]
    return Prediction(names[0], numbers[0], dict(zip(names, shares.tolist(), strict=False)))  # a label has no share


def _unfit(reason: str) -> RemoteError:
    return RemoteError(f"the server's answer does not fit the bundle ({reason}); does it serve the same bundle?")
