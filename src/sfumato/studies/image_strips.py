"""A few originals and what the attacks made of them, as one small picture beside a result."""

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sfumato.files import write_atomic


def write_strip(path: Path, rows: Mapping[str, Tensor]) -> None:
    """Rows of images (n, C, H, W) in [0, 1], all of one shape, without gaps, as a PNG that knows its rows' names."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    count, channels, height, width = next(iter(rows.values())).shape
    grid = torch.stack(list(rows.values())).clamp(0, 1).mul(255).round().to(torch.uint8)
    pixels = grid.permute(0, 3, 1, 4, 2).reshape(len(rows) * height, count * width, channels)
    info = PngInfo()
    info.add_text("rows", "\n".join(rows))
    info.add_text("columns", str(count))
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1).numpy()).save(buffer, "PNG", pnginfo=info, optimize=True)
    write_atomic(path, lambda temporary: _write_bytes(temporary, buffer.getvalue()))


def read_strip(path: Path) -> dict[str, Tensor] | None:
    """What `write_strip` wrote, as images in [0, 1] by row; None where there is none or it is damaged."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            names = str(picture.info["rows"]).split("\n")
            columns = int(picture.info["columns"])
            pixels = torch.from_numpy(np.array(picture))
    except (OSError, KeyError, ValueError, UnidentifiedImageError):
        return None
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    height, width = pixels.shape[0] // len(names), pixels.shape[1] // columns
    grid = pixels.reshape(len(names), height, columns, width, -1).permute(0, 2, 4, 1, 3).float() / 255
    return dict(zip(names, grid, strict=True))


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
