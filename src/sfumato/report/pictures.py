"""Originals beside what an attacker made of them, magnified without smoothing."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sfumato.errors import FeatureError
from sfumato.files import write_atomic

__all__ = ["png_data_uri", "save_side_by_side"]

_SIDE = 64
_GAP = 4
_TEXT = 15


def save_side_by_side(path: Path, originals: Tensor, redrawn: Mapping[str, Tensor]) -> None:
    """Write a PNG: the originals in the first row, then one labelled row per entry of `redrawn`.

    Images smaller than 64 pixels are magnified by a whole factor, every pixel becoming a square.

    Args:
        path: of the picture.
        originals: (n, C, H, W) in [0, 1], C = 1 (grey) or 3 (RGB); values outside are clipped.
        redrawn: label -> the same images as an attacker redrew them, in the same order and shape.

    Raises:
        FeatureError: the shapes do not belong together, or there is nothing to show.
        StorageError: the file could not be written.
    """
    from PIL import Image, ImageDraw

    rows = {"original": originals, **redrawn}
    for label, images in rows.items():
        if images.shape != originals.shape:
            raise FeatureError(
                f"'{label}' has shape {tuple(images.shape)}, but the originals have {tuple(originals.shape)}; pass the "
                "same images in the same order"
            )
    strips = {label: _strip(images) for label, images in rows.items()}
    font = _font()
    height, width, _ = next(iter(strips.values())).shape
    left = 3 * _GAP + max(round(font.getlength(label)) for label in strips)
    canvas = Image.new("RGB", (left + width + _GAP, len(strips) * (height + 2 * _GAP)), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (label, strip) in enumerate(strips.items()):
        top = index * (height + 2 * _GAP) + _GAP
        draw.text((_GAP, top + height / 2), label, fill="black", font=font, anchor="lm")
        image = Image.fromarray(strip)
        canvas.paste(image, (left, top), image)
    write_atomic(path, lambda temporary: canvas.save(temporary, format="PNG", optimize=True))


def png_data_uri(images: Tensor) -> str:
    """(n, C, H, W) in [0, 1] -> one row of magnified images as a `data:` URI, transparent between the images.

    Raises:
        FeatureError: the images have another shape, or there are none.
    """
    from PIL import Image

    stream = io.BytesIO()
    strip = _strip(images)
    grey = images.shape[1] == 1
    Image.fromarray(strip[..., [0, 3]] if grey else strip, "LA" if grey else "RGBA").save(
        stream, format="PNG", optimize=True
    )
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


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
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = height * factor, width * factor
    strip = np.zeros((height, count * (width + _GAP) - _GAP, 4), dtype=np.uint8)
    for index in range(count):
        left = index * (width + _GAP)
        strip[:, left : left + width, :3] = pixels[index]
        strip[:, left : left + width, 3] = 255
    return strip


def _font() -> Any:
    """DejaVu Sans, which comes with matplotlib and, unlike Pillow's own font, has Greek letters."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", _TEXT)
