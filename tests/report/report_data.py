"""A result and a study with hand-made numbers whose averages can be checked in the head."""

import copy
from html.parser import HTMLParser
from typing import Any

import torch

EVIDENCE = {
    "device": "A small computer",
    "threads": 1,
    "precision": "fp32",
    "python": "3.12.3",
    "torch": "2.13.0+cpu",
    "sfumato": "0.1.0",
    "commit": "abc1234",
}


FLAT = [0.08, *[0.03] * 15]
FALLING = [0.08, 0.07, 0.06, 0.05, 0.04]


def attack(mse: float, history: list[float]) -> dict[str, Any]:
    """An attack's figures as results keep them; one in closed form has no history."""
    return {
        "train": {"mse": mse / 2, "psnr": 24.5, "ssim": 0.75},
        "test": {"mse": mse, "psnr": 20.25, "ssim": 0.625},
        "converged": True,
        "reason": "8 neighbours",
        "history": history,
        "trivial_mse": 0.07,
    }


def row(defense: str, seed: int, accuracy: float, mse: float, noise: float, identified: float) -> dict[str, Any]:
    return {
        "defense": defense,
        "seed": seed,
        "noise_std": noise,
        "lam": 1.0 if defense == "noise+cem" else 0.0,
        "accuracy": accuracy,
        "mse_train": mse / 2,
        "mse_test": mse,
        "psnr_train": 24.5,
        "psnr_test": 20.25,
        "ssim_train": 0.75,
        "ssim_test": 0.625,
        "strongest": "nearest",
        "identified": identified,
        "information": None if defense == "none" else 12.5,
        "identified_at_most": None if defense == "none" else 0.9,
        "attacks": {"decoder": attack(mse * 1.02, FLAT), "nearest": attack(mse, [])},
    }


def result() -> dict[str, Any]:
    rows = []
    for seed, step in ((0, -1), (1, 0), (2, 1)):
        rows.append(row("none", seed, 0.986, 0.0065, 0.0, 1.0))
        rows.append(row("noise", seed, 0.972 + 0.002 * step, 0.009 + 0.001 * step, 0.1, 0.75))
        rows.append(row("noise+cem", seed, 0.973 + 0.001 * step, 0.024 + 0.002 * step, 0.1, 0.25))
        rows.append(row("noise", seed, 0.95, 0.015, 0.2, 0.5))
    return copy.deepcopy(
        {
            "rows": rows,
            "equal_accuracy": compared(),
            "histories": {"noise+cem": [40.0, 20.0, 12.5]},
            "noise_std": 0.1,
            "lam": 1.0,
            "mean_image_mse": 0.0717,
            "train_images": 1438,
            "test_images": 359,
            "seconds": 143.4,
            "evidence": EVIDENCE,
            "caveat": "Only small grey digits.",
        }
    )


def compared(
    ratio: tuple[float, float, float] = (2.0, 1.5, 2.5),
    difference: tuple[float, float, float] = (-0.5, -0.6, -0.4),
    **other: Any,
) -> dict[str, Any]:
    """CEM against noise alone: each effect with the ends of its interval."""
    own = {"accuracy": 0.973, "seeds": 3, "within": True} | other
    return {
        "error": {"value": 0.024, "curve_value": 0.012, "effect": ratio[0], "interval": list(ratio[1:]), **own},
        "identified": {
            "value": 0.25,
            "curve_value": 0.25 - difference[0],
            "effect": difference[0],
            "interval": list(difference[1:]),
            **own,
        },
    }


def pictures(count: int = 10) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    x = torch.linspace(0, 1, count * 64).reshape(count, 1, 8, 8)
    return x, {"none": x, "noise": x.flip(0), "noise0.2": x.flip(0), "noise+cem": 1 - x}


class Page(HTMLParser):
    """What a browser would make of a page: its tags with attributes, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = False
        self.feed(source)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data + " "

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def check_self_contained(source: str) -> Page:
    """No network, no scripts, small, and ids that occur once."""
    page = Page(source)
    assert "http://" not in source
    assert "https://" not in source
    assert "@import" not in source
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#"))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert len(source.encode()) < 500_000
    return page
