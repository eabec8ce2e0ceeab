from dataclasses import asdict, dataclass

import torch

from sfumato.seeds import generator


@dataclass
class L:
    identified: float
    candidates: int
    identified_error: float
    information: float | None
    information_error: float | None
    identified_at_most: float | None
    clipped_at_most: float | None

    def as_dict(self):
        return asdict(self)


@torch.no_grad()
def measure_leakage(model, images, *, seed=0):
    x = images.float(torch.arange(len(images)))
    zh = model.features(x).flatten(1).float()
    z = model.encode(x, generator(seed, "id")).flatten(1).float()
    hit = (torch.cdist(z, zh).argmin(1) == torch.arange(len(x))).float()
    s = model.channel.noise_std
    return L(
        float(hit.mean()),
        len(x),
        float(hit.std() / len(x) ** 0.5),
        None if s == 0 else float(1 / s),
        None if s == 0 else 0.1,
        None if s == 0 else min(1.0, 1 / s / 6),
        None,
    )
