"""Random numbers that depend on names, not on history: a resumed run draws what an undisturbed one draws."""

import hashlib

import torch

__all__ = ["derive_seed", "generator"]


def derive_seed(seed: int, *path: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. `derive_seed(seed, "noise", epoch, step)`.

    SHA-256 of the seed and the path, so that neighbouring seeds and steps are unrelated. For experiments only: noise
    that protects a real device comes from the operating system's randomness.
    """
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *path: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by `derive_seed`."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *path))
