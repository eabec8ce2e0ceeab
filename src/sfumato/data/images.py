"""Image files to pixels: 8-bit RGB, or an error that names the file."""

import io
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sfumato.errors import DataError

__all__ = ["LOSSY_SUFFIXES", "SUFFIXES", "Pixels", "read_image"]

Pixels = npt.NDArray[np.uint8]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg", ".webp"})

_DAMAGED = re.compile(r"premature end|bad huffman", re.IGNORECASE)


def read_image(path: Path, size: tuple[int, int] | None = None) -> Pixels:
    """The pixels of one image file as RGB, (3, H, W); grey images get three equal channels, transparency is dropped.

    JPEG files are decoded by simplejpeg (five times faster than Pillow, same pixels), everything else by Pillow. Pixels
    are taken as stored: an EXIF orientation is not applied.

    Args:
        path: the file.
        size: (H, W) to which other sizes are resized (bilinear; stretched where the shape differs), or none.

    Raises:
        DataError: the file cannot be read, is truncated or damaged, or has more than 8 bits per channel.
    """
    try:
        data = path.read_bytes()
        pixels = _decode(data)
    except Exception as error:
        # Decoders raise OSError, SyntaxError, ValueError, struct.error, their own warnings-as-errors and more.
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise DataError(
            f"cannot read the image {path}: {reason}; replace the file by an undamaged 8-bit copy, or remove it"
        ) from error
    if size is not None and pixels.shape[:2] != size:
        from PIL import Image

        pixels = np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return pixels.transpose(2, 0, 1)


def _decode(data: bytes) -> Pixels:
    if data.startswith(b"\xff\xd8"):
        try:
            return _decode_jpeg(data)
        except ValueError as error:
            # What is missing cannot be decoded by others either; they would only fill it with grey.
            if _DAMAGED.search(str(error)):
                raise
        except ImportError:
            pass
    return _decode_any(data)


def _decode_jpeg(data: bytes) -> Pixels:
    import simplejpeg

    if simplejpeg.decode_jpeg_header(data)[2] in ("CMYK", "YCCK"):
        return _decode_any(data)  # the two round differently here, and a device may have Pillow only
    pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
    return pixels


def _decode_any(data: bytes) -> Pixels:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ValueError("it is empty, truncated or no image" if data else "it is empty") from None
    with image:
        if image.mode[0] in "IF":
            raise ValueError(f"its pixels have more than 8 bits (mode {image.mode})")
        return np.asarray(image.convert("RGB"))
