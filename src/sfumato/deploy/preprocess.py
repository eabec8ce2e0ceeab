"""From an image file, a Pillow image, an array or a text's tokens to the encoder's input, as training saw it."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.decode import decoded, reason_of
from sfumato.deploy.manifest import UNSET, InputSpec
from sfumato.errors import ConfigError, DataError

__all__ = ["prepare"]

Floats = npt.NDArray[np.float32]

_WHITE = np.float32(255)


def prepare(image: Any, spec: InputSpec) -> Floats | npt.NDArray[np.int64]:
    """One image as float32 (1, C, H, W) in [0, 1], or one text as int64 (1, L), contiguous.

    Files are decoded by Pillow, made grey or RGB as the encoder needs, stretched to (H, W) bilinearly if their size
    differs, and divided by 255. An EXIF orientation is not applied, as in training.

    An array of floats (C, H, W) of exactly the encoder's shape is taken as it is. A DataError says that it is no image,
    truncated, of another size where that must not be, or holds NaN; a ConfigError, that Pillow is missing.

    Of a text the tokens are taken as whole numbers, or from an .npy file of them; a DataError says that they are none,
    or that their number or one of them is not the encoder's.
    """
    if spec.tokens is not UNSET:
        return _tokens(image, spec.shape[0], spec.tokens)
    if isinstance(image, np.ndarray) and image.dtype in (np.float32, np.float64):
        return _floats(image, spec)
    if isinstance(image, np.ndarray):
        pixels = _pixels(image, spec)
    else:
        pixels = _from_pillow(_open(image) if isinstance(image, str | Path) else image, spec)
    channels_first = pixels[None, None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)[None]
    # Bytes are put in order before they become floats: a quarter of the memory moves.
    ordered = np.ascontiguousarray(channels_first).astype(np.float32)
    ordered /= _WHITE
    return ordered


def _tokens(text: Any, length: int, tokens: int) -> npt.NDArray[np.int64]:
    try:
        ids = np.load(text, allow_pickle=False) if isinstance(text, str | Path) else np.asarray(text)
    except FileNotFoundError:
        raise DataError(f"there is no text {text}; give the path of an .npy file with its tokens") from None
    except Exception as error:  # numpy has many types for what is none of its own
        raise DataError(f"cannot read the tokens of {str(text)[:200]}: {error}; give an .npy file of them") from error
    if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu" or ids.shape not in ((length,), (1, length)):
        found = f"{ids.dtype} of shape {ids.shape}" if isinstance(ids, np.ndarray) else "an archive of arrays"
        raise DataError(f"the text is {found}; the encoder takes {length} whole numbers: pad or cut it")
    if ids.min() < 0 or ids.max() >= tokens:
        raise DataError(
            f"the tokens run from {ids.min()} to {ids.max()}, and the encoder knows 0 to {tokens - 1}; use the "
            "tokenizer that the model was trained with"
        )
    return np.ascontiguousarray(ids.reshape(1, length), dtype=np.int64)


def _floats(image: npt.NDArray[Any], spec: InputSpec) -> Floats:
    if image.shape != spec.shape:
        raise DataError(
            f"the float image has shape {image.shape}, the encoder takes {spec.shape} in [0, 1]; give that, or uint8 "
            "pixels (H, W, C)"
        )
    if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
        raise DataError("the float image holds values outside [0, 1] or NaN; divide 8-bit pixels by 255")
    # + 0 turns -0.0 into 0.0: equal images have equal bytes, and so equal memoised noise.
    return np.ascontiguousarray(image[None], dtype=np.float32) + np.float32(0)


def _pixels(image: npt.NDArray[Any], spec: InputSpec) -> npt.NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape:
        raise DataError(
            f"the image is an array of {image.dtype} and shape {image.shape}; give uint8 pixels (H, W) or (H, W, C)"
        )
    channels, *size = spec.shape
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    found = 1 if image.ndim == 2 else image.shape[2]
    if found not in (1, 3):
        raise DataError(f"the image has {found} channels; give 1 (grey) or 3 (RGB)")
    if found == channels and list(image.shape[:2]) == size:
        return image
    return _from_pillow(_pillow().fromarray(np.ascontiguousarray(image)), spec)


def _open(path: str | Path) -> Any:
    images = _pillow()
    try:
        return images.fromarray(decoded(Path(path).read_bytes()))
    except FileNotFoundError:
        raise DataError(f"there is no image {path}; give the path of an image file") from None
    except Exception as error:  # decoders have many types
        raise DataError(f"cannot read the image {path}: {reason_of(error)}; give an undamaged 8-bit image") from error


def _from_pillow(image: Any, spec: InputSpec) -> npt.NDArray[np.uint8]:
    images = _pillow()
    if not isinstance(image, images.Image):
        raise DataError(f"the image is a {type(image).__name__}; give a path, a Pillow image or an array")
    if image.mode[0] in "IF":
        raise DataError(f"the image has more than 8 bits (mode {image.mode}); give an 8-bit one")
    channels, height, width = spec.shape
    # As in training, colour first and size second; grey comes from RGB, to which every other mode can be converted.
    image = image if image.mode == "L" and channels == 1 else image.convert("RGB")
    image = image.convert("L") if channels == 1 else image
    if image.size != (width, height):
        if spec.resize == "exact":
            raise DataError(
                f"the image has {image.width} x {image.height} pixels, the encoder takes {width} x {height}; resize it"
            )
        image = image.resize((width, height), images.Resampling.BILINEAR)
    return np.asarray(image)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ConfigError(
            "reading and resizing images needs the package pillow; install it, or give uint8 pixels of the encoder's "
            "size"
        ) from None
    return Image
