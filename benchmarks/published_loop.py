"""Our training step with CEM against one that stands for the authors' code."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sfumato import models
from sfumato.bench.timing import Ratio, take_turns
from sfumato.bench.training import CONFIG, stepper
from sfumato.cem import CEM
from sfumato.compute import cpu_has_bf16
from sfumato.data import Augmentation, ImageSet
from sfumato.training import TrainConfig

__all__ = ["against_published"]


def against_published(rounds: int, images: ImageSet, config: TrainConfig = CONFIG) -> Ratio:
    """A step with CEM, full covariances: theirs over ours."""
    ours, theirs = stepper(replace(config, cem=True), images), _published_step(images, config.batch_size)
    seconds, ratio = take_turns({"ours": ours, "theirs": theirs}, rounds=rounds)
    bf16 = cpu_has_bf16()
    return Ratio(
        "training step with CEM",
        ratio("theirs", "ours"),
        "a step that stands for the authors' code: fp32, NCHW, a second backward pass through the encoder for CEM",
        2.1 if bf16 else 1.2,
        "at least",
        f"{1e3 * seconds['theirs']:.0f} ms against {1e3 * seconds['ours']:.0f} ms, "
        f"CPU {'with' if bf16 else 'without'} bf16",
    )


def _published_step(images: ImageSet, batch: int) -> Callable[[], object]:
    """Their network, loss and order of things; the augmentation is ours, which is faster than theirs."""
    torch.manual_seed(0)
    edge, cloud = models.build("vgg11", cut=2, num_classes=10, image_shape=(3, 32, 32), bottleneck=8)
    parameters = [*edge.parameters(), *cloud.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)
    augmentation = Augmentation(pad=4, flip=True)
    cem = CEM.as_published(num_classes=10, noise_std=0.025)
    with torch.no_grad():
        edge.eval()
        cem.refresh(edge(images.float(torch.arange(len(images)))), images.labels)
    nn.Sequential(edge, cloud).train()
    batches = torch.arange(len(images)).split(batch)
    state = {"step": 0}

    def step() -> None:
        indices = batches[state["step"] % (len(images) // batch)]
        generator = torch.Generator().manual_seed(state["step"])
        x, y = augmentation(images.images[indices], generator), images.labels[indices]
        z = edge(x)
        task = cross_entropy(cloud(z + 0.025 * torch.randn_like(z)), y)
        optimizer.zero_grad()
        task.backward(retain_graph=True)
        (0.016 * cem(z, y)).backward()
        optimizer.step()
        state["step"] += 1

    return step
