"""A loop as users write it, on one process or under DistributedDataParallel on two."""

import socket
import sys

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import sfumato

CLASSES, SIGMA = 3, 0.1


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    return torch.rand(CLASSES, 8, generator=generator)[labels] + 0.1 * torch.randn(
        count, 8, generator=generator
    ), labels


class Network(nn.Module):
    """Feature and answer; the noise is left out, so that one process and two see the same."""

    def __init__(self) -> None:
        super().__init__()
        self.edge = nn.Sequential(nn.Linear(8, 6), nn.Sigmoid())
        self.cloud = nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z_hat = self.edge(x)
        return z_hat, self.cloud(z_hat)


def train(rank: int | None, size: int) -> dict[str, torch.Tensor]:
    """Three epochs over 240 samples in batches of 48, of which this rank has its part."""
    torch.manual_seed(0)
    network = Network()
    model = network if rank is None else DistributedDataParallel(network)
    cem = sfumato.CEM(num_classes=CLASSES, noise_std=SIGMA, clusters_per_class=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = batch(240)
    own = slice((rank or 0) * (240 // size), ((rank or 0) + 1) * (240 // size))
    for epoch in range(3):
        with torch.no_grad():
            cem.refresh(network.edge(x[own]), y[own])
        order = torch.randperm(240, generator=torch.Generator().manual_seed(epoch))
        for indices in order.split(48):
            part = indices.chunk(size)[rank or 0]
            z_hat, logits = model(x[part])
            loss = cross_entropy(logits, y[part]) + epoch * cem(z_hat, y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    return state | {"information": torch.tensor(cem.information), "means": cem.means, "covariances": cem.covariances}


if __name__ == "__main__":
    torch.set_num_threads(1)
    port, folder, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=2)
    save_file({name: value.contiguous() for name, value in train(number, 2).items()}, f"{folder}/{number}.safetensors")
    dist.destroy_process_group()
