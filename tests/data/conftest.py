import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Every test reads and writes a cache of its own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SFUMATO_CACHE", str(folder))
    return folder


@pytest.fixture
def write_classes():
    """Write DIR/<part>/<class>/<i>.png of random pixels; gives the pixels as {part: {class: (n, H, W, 3)}}."""

    def write(root, classes=("ant", "bee"), *, parts=("train", "test"), per_class=3, side=(8, 8), suffix=".png"):
        rng = np.random.default_rng(0)
        written = {}
        for part in parts:
            written[part] = {}
            for name in classes:
                (root / part / name).mkdir(parents=True)
                pixels = rng.integers(0, 256, (per_class, *side, 3), dtype=np.uint8)
                for i, image in enumerate(pixels):
                    Image.fromarray(image).save(root / part / name / f"{i}{suffix}")
                written[part][name] = pixels
        return written

    return write
