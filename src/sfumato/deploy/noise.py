"""Noise that nobody can predict: a ChaCha20 keystream, turned into uniform and Gaussian numbers.

The key of a stream is an HMAC of the input under the device's secret key, 32 bytes of the operating system: noise is
memoised, so that asking again gains nothing. There is no generator state between two queries, so nothing can be shared
by processes, sessions or forked children, and nothing can be recovered from earlier noise: telling a ChaCha20 keystream
from random bits without its key is what no published attack can do.

What it does not do is in `docs/security.md`: the noise repeats for an exact repeat on one device only.
"""

import hashlib
import hmac
import struct
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.errors import ConfigError

__all__ = ["KEY_BYTES", "Stream", "channel_identity", "memoised_key"]

KEY_BYTES = 32

# Bytes in front of the derivation, so that one secret never serves two purposes with one result.
_PURPOSE = b"sfumato noise 2\n"

_WORD = np.dtype("<u8")
_NONCE = bytes(16)
_DROPPED = np.uint64(11)  # of a word's 64 bits
_STEP_53 = 2.0**-53
_STEP_24 = np.float32(2.0**-24)

Floats = npt.NDArray[np.float32]


class Stream:
    """The numbers of one query, from one 32-byte key that serves for nothing else.

    Without the package `cryptography` there is a ConfigError and no fallback to a weaker source.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ConfigError(f"the key of a noise stream has {len(key)} bytes; it needs {KEY_BYTES}")
        cipher, chacha20 = _cipher()
        # Every key is used for one stream only, so counter and nonce begin at zero.
        self._keystream: Any = cipher(chacha20(key, _NONCE), mode=None).encryptor()

    def normals(self, count: int) -> npt.NDArray[np.float64]:
        """`count` standard normal numbers by Box and Muller, float64.

        With u, v uniform on the multiples of 2^-53 in (0, 1]: `sqrt(-2 log u) cos(2 pi v)` and the same with the sine.
        Both come from `t = tan(pi v)`: the cosine is `(1 - t^2) / (1 + t^2)`, the sine `2 t / (1 + t^2)`; one function
        instead of two, and one that numpy computes several values at a time.
        Exact up to float64 rounding; the largest possible value is 8.57.
        """
        # Right behind an encoder's run every call costs a microsecond before it computes anything: few calls, in place.
        pairs = (count + 1) // 2
        # (0, 1]: 53 random bits plus one step, exactly; the logarithm of 0 cannot occur.
        words = np.frombuffer(self._keystream.update(bytes(16 * pairs)), _WORD)
        uniform = (words >> _DROPPED) * _STEP_53
        uniform += _STEP_53
        radius, tangent = np.log(uniform[:pairs]), uniform[pairs:]
        radius *= -2.0
        np.sqrt(radius, out=radius)
        tangent *= np.pi
        np.tan(tangent, out=tangent)
        found = np.empty((2, pairs))
        square = np.multiply(tangent, tangent, out=found[1])
        np.subtract(1.0, square, out=found[0])
        square += 1.0
        radius /= square
        np.add(tangent, tangent, out=found[1])
        found *= radius
        return found.reshape(-1)[:count]

    def uniforms(self, count: int) -> Floats:
        """`count` numbers uniform on the multiples of 2^-24 in [0, 1), float32."""
        words = np.frombuffer(self._keystream.update(bytes(4 * count)), dtype="<u4")
        return (words >> np.uint32(8)).astype(np.float32) * _STEP_24


@cache
def _cipher() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
    except ImportError:
        raise ConfigError("noise needs the package cryptography; install sfumato[edge]") from None
    return Cipher, algorithms.ChaCha20


def channel_identity(encoder: str, std: float, clip_norm: float | None, shape: str = "") -> bytes:
    """`purpose | SHA-256 of the encoder | std | clip_norm | SHA-256 of the shape`: all that the noise belongs to
    but image and device.

    The noise of one image under two standard deviations or two clips has to differ: two equations with one noise would
    be solved for the feature. The numbers are little-endian float64, 0 where nothing is clipped; `encoder` is the
    SHA-256 in hexadecimal digits, and so is `shape`, that of the numbers of noise with a shape; it is empty without.
    """
    return _PURPOSE + bytes.fromhex(encoder) + struct.pack("<dd", std, clip_norm or 0.0) + bytes.fromhex(shape)


def memoised_key(device_key: bytes, identity: bytes, image: bytes | memoryview) -> bytes:
    """`HMAC-SHA256(device key, identity | SHA-256 of the image)`.

    A pseudo-random function of the input as it enters the encoder: an exact repeat gets the same key; any other input,
    channel or device gets one that is independent of it to everyone without the device key.
    """
    return hmac.digest(device_key, identity + hashlib.sha256(image).digest(), "sha256")
