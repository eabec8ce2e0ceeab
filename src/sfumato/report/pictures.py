"""Originals beside what an attacker made of them, magnified without smoothing."""

import base64
import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sfumato.errors import FeatureError
from sfumato.files import write_atomic

_SIDE, _GAP = 64, 4
_SIZES = (15, 12)  # of the first line of a label and of the others


def save_side_by_side(path: Path, originals: Tensor, reconstructed: Mapping[str, Tensor]) -> None:
    """Write a PNG: the originals in the first row, then one labelled row per entry of `reconstructed`.

    Images smaller than 64 pixels are magnified by a whole factor, every pixel becoming a square.

    Args:
        path: of the picture.
        originals: (n, C, H, W) in [0, 1], C = 1 (grey) or 3 (RGB); values outside are clipped.
        reconstructed: label -> the same images as an attacker reconstructed them, in the same order and shape.

    Raises:
        FeatureError: the shapes do not belong together, or there is nothing to show.
        StorageError: the file could not be written.
    """
    png = labelled_rows({"original": originals, **reconstructed})
    write_atomic(path, partial(Path.write_bytes, data=png))


def labelled_rows(rows: Mapping[str, Tensor]) -> bytes:
    """A PNG on white: one row of magnified images per entry, its label on the left.

    The lines of a label after the first are written smaller.
    """
    from PIL import Image, ImageDraw

    if not rows:
        raise FeatureError("there are no pictures to show; give at least one row of them")
    first, *_ = rows.values()
    for label, images in rows.items():
        if images.shape != first.shape:
            raise FeatureError(
                f"'{', '.join(label.splitlines())}' has shape {tuple(images.shape)}, but the originals have "
                f"{tuple(first.shape)}; pass the same images in the same order"
            )
    strips = [_strip(images) for images in rows.values()]
    labels = [[(line, _font(_SIZES[index > 0])) for index, line in enumerate(label.split("\n"))] for label in rows]
    height, width, _ = strips[0].shape
    left = 3 * _GAP + max(round(font.getlength(line)) for lines in labels for line, font in lines)
    canvas = Image.new("RGB", (left + width + _GAP, len(strips) * (height + 2 * _GAP)), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (lines, strip) in enumerate(zip(labels, strips, strict=True)):
        top = index * (height + 2 * _GAP) + _GAP
        for number, (line, font) in enumerate(lines):
            middle = top + height / 2 + (number - (len(lines) - 1) / 2) * (_SIZES[0] + _GAP)
            draw.text((_GAP, middle), line, fill="black", font=font, anchor="lm")
        image = Image.fromarray(strip)
        canvas.paste(image, (left, top), image)
    return _png(canvas)


def png_data_uri(images: Tensor) -> str:
    """(n, C, H, W) in [0, 1] -> one row of magnified images as a `data:` URI, transparent between the images.

    Raises:
        FeatureError: the images have another shape, or there are none.
    """
    from PIL import Image

    strip = _strip(images)
    grey = images.shape[1] == 1
    return data_uri(_png(Image.fromarray(strip[..., [0, 3]] if grey else strip, "LA" if grey else "RGBA")))


def data_uri(png: bytes) -> str:
    """The bytes of a PNG as a `data:` URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _png(image: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _strip(images: Tensor) -> np.ndarray:
    """(n, C, H, W) -> (height, width, 4) bytes: magnified images side by side with transparent gaps."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise FeatureError(
            f"pictures have to be (n, 1, H, W) grey or (n, 3, H, W) RGB with n at least 1, got {tuple(images.shape)}"
        )
    count, _, height, width = images.shape
    factor = max(1, -(-_SIDE // max(height, width)))
    values = images.detach().cpu().double().nan_to_num(0.0).clamp(0, 1).mul(255).round().byte()
    pixels = values.permute(0, 2, 3, 1).expand(count, height, width, 3).numpy()
    opaque = np.pad(pixels.repeat(factor, 1).repeat(factor, 2), ((0, 0),) * 3 + ((0, 1),), constant_values=255)
    framed = np.pad(opaque, ((0, 0), (0, 0), (0, _GAP), (0, 0)))  # (count, height, width + gap, 4)
    return np.concatenate(list(framed), axis=1)[:, :-_GAP]


def _font(size: int) -> Any:
    """DejaVu Sans, which comes with matplotlib and, unlike Pillow's own font, has Greek letters."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
