"""From the bytes of an image file to pixels: the same for training, audits and devices, without torch."""

import io
import re
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["decoded", "reason_of"]

_MOST_PIXELS = 100_000_000  # of a file that claims to be an image; decoding a larger one could exhaust the memory
_HOPELESS = re.compile(r"premature end|bad huffman|it claims to have", re.IGNORECASE)


def reason_of(error: Exception) -> str:
    """Why an image cannot be read; decoders raise OSError, SyntaxError, ValueError, struct.error and more."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def decoded(data: bytes) -> npt.NDArray[np.uint8]:
    """The pixels of an encoded image as RGB, (H, W, 3).

    Grey images get three equal channels, transparency is dropped, of an animation the first frame counts. JPEG files
    are decoded by simplejpeg (five times faster than Pillow, same pixels), everything else by Pillow. Pixels are taken
    as stored: an EXIF orientation is not applied.

    Raises:
        ValueError: it is damaged, huge, or has more than 8 bits per channel: nobody knows which 8 of 16 bits matter, so
            they are not dropped here. Decoders have errors of their own besides, see `reason_of`.
    """
    from PIL import Image, UnidentifiedImageError

    if data.startswith(b"\xff\xd8"):
        try:
            import simplejpeg

            height, width, colours, *_ = simplejpeg.decode_jpeg_header(data)
            _check_size(width, height)
            # The two round CMYK differently, and a device may have Pillow only.
            if colours not in ("CMYK", "YCCK"):
                pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB")
                return pixels
        except ValueError as error:
            # What is missing cannot be decoded by others either; they would only fill it with grey.
            if _HOPELESS.search(str(error)):
                raise
        except ImportError:
            pass
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ValueError("it is empty, truncated or no image" if data else "it is empty") from None
    with image:
        _check_size(*image.size)
        if image.mode[0] in "IF" or _bits(image, data) > 8:
            raise ValueError(f"its pixels have more than 8 bits per channel ({image.format})")
        return np.asarray(image.convert("RGB"))


def _check_size(width: int, height: int) -> None:
    if width * height > _MOST_PIXELS:
        raise ValueError(f"it claims to have {width} x {height} pixels")


def _bits(image: Any, data: bytes) -> int:
    """Bits per channel as the file says; Pillow drops half of 16 without a word."""
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(258, (1,))))
    if image.format == "PPM":
        limit = image.tile[0][3]  # the raw mode, or that with the largest value
        return int(limit[-1]).bit_length() if isinstance(limit, tuple) and isinstance(limit[-1], int) else 8
    return 8
