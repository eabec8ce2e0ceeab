"""Which model an audit stands for: what it computes, on what channel, by which versions; not how it prints itself."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import sfumato
from sfumato.audit.subject import Subject
from sfumato.seeds import generator
from sfumato.split.programs import random_inputs
from sfumato.torch_utils import evaluating

_BATCHES = (1, 2, 5)


def behaviour_of(subject: Subject, shape: tuple[int, ...]) -> str:
    """SHA-256 of features and answers on probe images (C, H, W), or texts (L,), in batches of several sizes.

    Half of the probes are noise, half are smooth. They run on the CPU in one thread, so that the same model gives the
    same bits whatever else the machine does; another version of PyTorch may give others.
    """
    model, place, digest = subject.model, subject.device, hashlib.sha256()
    probes = _probes(shape) if subject.tokens is None else random_inputs(8, shape, 0, subject.tokens)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        model.to("cpu")
        with evaluating(model):
            for x in (part for size in _BATCHES for part in probes.split(size)):
                z_hat = model.features(x)
                for value in (z_hat, model.cloud(z_hat)) if subject.has_cloud else (z_hat,):
                    digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
                    digest.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    finally:
        torch.set_num_threads(threads)
        model.to(place)
    return digest.hexdigest()


def channel_of(subject: Subject) -> dict[str, Any]:
    """What happens to the feature before it leaves."""
    channel = subject.model.channel
    noise = channel.noise
    kept = {name: getattr(channel, name) for name in ("noise_std", "clip_norm", "quantize_bits", "low", "high")}
    if not noise.white:
        kept |= {"noise_shape": noise.digest, "noise_smallest": noise.smallest, "noise_rank": noise.rank}
    return kept | {"transforms": [type(one).__name__ for one in channel.transforms]}


def versions() -> dict[str, str]:
    """Of what computes the features."""
    return {"sfumato": sfumato.__version__, "torch": str(torch.__version__)}


def target_of(subject: Subject, behaviour: str, feature_shape: Sequence[int], *, gradients: bool) -> dict[str, Any]:
    """What was audited, as `schema.Target` describes it."""
    return {
        **{name: getattr(subject, name) for name in ("name", "kind", "digest", "defense", "setting")},
        "behaviour": behaviour,
        "versions": versions(),
        "gradients": gradients,
        "feature_shape": list(feature_shape),
        "feature_values": math.prod(feature_shape),
        "channel": channel_of(subject),
    }


def _probes(shape: tuple[int, ...]) -> Tensor:
    channels, height, width = shape
    random = generator(0, "audit-probes")
    noise = torch.rand((4, *shape), generator=random)
    corners = torch.rand((4, channels, 2, 2), generator=random)
    smooth = torch.nn.functional.interpolate(corners, size=(height, width), mode="bilinear", align_corners=True)
    return torch.stack([noise, smooth], 1).flatten(0, 1)
