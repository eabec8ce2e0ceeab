"""Pictures beside results: what is written is read back."""

import pytest
import torch

from sfumato.studies.experiment import read_strip, write_strip


@pytest.mark.parametrize("channels", [1, 3])
def test_round_trip(tmp_path, channels):
    generator = torch.Generator().manual_seed(0)
    rows = {name: torch.rand(3, channels, 4, 5, generator=generator) for name in ("original", "decoder", "gan")}
    write_strip(tmp_path / "a.png", rows)
    back = read_strip(tmp_path / "a.png")
    assert list(back) == list(rows)
    for name, images in rows.items():
        assert torch.allclose(back[name], images, atol=0.5 / 255 + 1e-6)


def test_missing_and_damaged_pictures_are_none(tmp_path):
    assert read_strip(tmp_path / "none.png") is None
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert read_strip(tmp_path / "bad.png") is None
