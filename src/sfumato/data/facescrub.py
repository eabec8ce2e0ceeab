"""FaceScrub: photographs of 530 people, to be recognised by their faces.

H.-W. Ng and S. Winkler, "A data-driven approach to cleaning large face datasets", ICIP 2014;
http://vintage.winklerbros.net/facescrub.html

The authors publish a list of addresses and face boxes, not the images. Everybody downloads and crops what is still
there, so two copies are rarely the same.
"""

from pathlib import Path

from sfumato.data.folder import is_unsplit
from sfumato.data.imageset import DataSets, Progress
from sfumato.data.reading import TEST_FRACTION, TEST_SEED, Size, read_unsplit
from sfumato.data.scan import describe, scan_classes
from sfumato.errors import DataError

__all__ = ["load_facescrub"]

_PAGE = "http://vintage.winklerbros.net/facescrub.html"
_LAYOUT = "one folder per person, DIR/<identity>/<image>.jpg"
_IMAGES, _PEOPLE = 106_863, 530


def load_facescrub(data_dir: Path | str, *, size: Size = None, progress: Progress | None = None) -> DataSets:
    """FaceScrub from one folder per person, resized to 48x48 as in the paper.

    It has no split of its own: a fifth of the images of each person is taken for testing, always the same (see
    `read_unsplit`). The decoded images are cached as those of `load_folder`.

    Args:
        data_dir: the folder of the persons' folders.
        size: another side, or (H, W).
        progress: called with (images read, images in all).

    Raises:
        DataError: the data set is not there, a person has no image, or a file is damaged.
        ConfigError: `size` is not positive.
    """
    folder = Path(data_dir)
    if not is_unsplit(folder):
        raise DataError(
            f"no FaceScrub in {folder}: expected {_LAYOUT}, but found {describe(folder)}; ask for the list of "
            f"addresses and boxes on {_PAGE}, download the images and crop the faces to that layout (a copy with "
            "train/ and test/ in it is read as `folder` with size 48)"
        )
    found = scan_classes(folder, _LAYOUT)
    caveat = (
        f"FaceScrub has no official split: {TEST_FRACTION:.0%} of the images of each person, drawn with seed "
        f"{TEST_SEED}, are the test set. This copy holds {len(found.files):,} of {_IMAGES:,} listed images and "
        f"{len(found.classes)} of {_PEOPLE} people: numbers of different copies do not compare digit by digit."
    )
    return read_unsplit("facescrub", found, size=48 if size is None else size, progress=progress, caveat=caveat)
