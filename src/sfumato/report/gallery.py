"""Figure 5 of the paper: the same images, as each attack reconstructs them from each defence."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sfumato.errors import FeatureError
from sfumato.report.pictures import labelled_rows
from sfumato.report.style import label

__all__ = ["GalleryRow", "gallery"]


@dataclass(frozen=True)
class GalleryRow:
    """What one attack made of one defence.

    Attributes:
        defense: short name, such as `noise_arl+cem`.
        attack: what readers see, such as `decoder`.
        images: (n, C, H, W) in [0, 1], in the order of the originals.
        detail: a few words, such as `MSE 0.0214`.
    """

    defense: str
    attack: str
    images: Tensor
    detail: str = ""


def gallery(originals: Tensor, reconstructed: Sequence[GalleryRow]) -> bytes:
    """A PNG: the originals in the first row, then one row per defence and attack, one image per column."""
    rows = {"original": originals}
    for entry in reconstructed:
        name = f"{label(entry.defense)}\n{entry.attack}" + (f", {entry.detail}" if entry.detail else "")
        if name in rows:
            raise FeatureError(
                f"two rows are called '{label(entry.defense)}, {entry.attack}'; tell them apart by `detail`"
            )
        rows[name] = entry.images
    return labelled_rows(rows)
