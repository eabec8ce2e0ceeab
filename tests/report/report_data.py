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


def row(defense: str, seed: int, accuracy: float, mse: float, noise: float, lam: float, **other: Any) -> dict[str, Any]:
    return {
        "defense": defense,
        "seed": seed,
        "noise_std": noise,
        "lam": lam,
        "accuracy": accuracy,
        "mse_train": mse / 2,
        "mse_test": mse,
        "psnr_train": 24.5,
        "psnr_test": 20.25,
        "ssim_train": 0.75,
        "ssim_test": 0.625,
        "information": 12.5 if defense == "noise+cem" else None,
        "converged": True,
        "reason": "the last 3 epochs gained 0.5%",
    } | other


def result() -> dict[str, Any]:
    rows = []
    for seed, step in ((0, -1), (1, 0), (2, 1)):
        rows.append(row("none", seed, 0.986, 0.0065, 0.0, 0.0))
        rows.append(row("noise", seed, 0.972 + 0.002 * step, 0.009 + 0.001 * step, 0.1, 0.0))
        rows.append(row("noise+cem", seed, 0.973 + 0.001 * step, 0.024 + 0.002 * step, 0.1, 1.0))
    sweep = [row("noise", 0, 0.95, 0.015, 0.2, 0.0), row("noise+cem", 0, 0.98, 0.0125, 0.1, 0.25)]
    return copy.deepcopy(
        {
            "rows": rows,
            "curve": [*rows, *sweep],
            "histories": {"noise+cem": [40.0, 20.0, 12.5]},
            "gain": {"mse_ratio": 2.67, "accuracy_difference": 0.001, "noise_std": 0.1, "lam": 1.0},
            "mean_image_mse": 0.0717,
            "seconds": 143.4,
            "evidence": EVIDENCE,
            "caveat": "Only small grey digits.",
        }
    )


def study(ratio: float = 1.5, low: float = 1.25, high: float = 1.75) -> dict[str, Any]:
    return {
        "points": [
            {
                "defense": "noise+cem",
                "noise_std": 0.1,
                "lam": lam,
                "accuracy": accuracy,
                "accuracy_se": 0.003,
                "mse_test": mse,
                "mse_se": 0.0005,
                "curve_mse": 0.0095,
                "ratio": mse / 0.0095,
                "ratio_ci": [0.9 * mse / 0.0095, 1.1 * mse / 0.0095],
                "below_curve_se": below,
            }
            for lam, accuracy, mse, below in ((0.1, 0.978, 0.019, 0.0), (1.0, 0.971, 0.0076, 2.3))
        ],
        "noise_curve": [
            {"noise_std": noise, "accuracy": accuracy, "accuracy_se": 0.002, "mse_test": mse, "mse_se": 0.0004}
            for noise, accuracy, mse in ((0.05, 0.984, 0.0075), (0.2, 0.957, 0.0141))
        ],
        "overall": {"ratio": ratio, "ci": [low, high], "folds": 5, "digits": 1797},
        "evidence": EVIDENCE,
        "seconds": 1432.4,
    }


def pictures(count: int = 10) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    x = torch.linspace(0, 1, count * 64).reshape(count, 1, 8, 8)
    return x, {"none": x, "noise": x.flip(0), "noise+cem": 1 - x}


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
