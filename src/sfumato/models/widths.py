"""Narrowing a network: which channels can go, taking them out, and making a network as narrow as stored weights."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.errors import CheckpointError


@dataclass(frozen=True)
class Prunable:
    """Channels that only one layer makes and only one layer reads, so that they can be taken out."""

    producer: nn.Conv2d  # whose outputs they are
    norm: nn.BatchNorm2d  # between the two
    consumer: nn.Conv2d  # that reads them


def prunable(module: nn.Module) -> list[Prunable]:
    """The groups of channels inside a network that can be taken out, in the order of its layers.

    Followed are chains of convolution, batch normalisation and layers without parameters inside a `nn.Sequential`. A
    residual block is a chain of its own and keeps its outputs, which its shortcut fixes; so does what feeds it.
    """
    return list(_walk(module))


def _walk(module: nn.Module) -> Iterator[Prunable]:
    producer: nn.Conv2d | None = None
    norm: nn.BatchNorm2d | None = None
    for part in _flat(module):
        if isinstance(part, nn.Conv2d):
            if producer is not None and norm is not None and part.groups == producer.groups == 1:
                yield Prunable(producer, norm, part)
            producer, norm = part, None
        elif isinstance(part, nn.BatchNorm2d):
            norm = part if producer is not None else None
        elif any(True for _ in part.parameters()):
            if list(part.children()):
                yield from _walk(_chain_of(part))
            producer, norm = None, None


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.Sequential):
        for part in module:
            yield from _flat(part)
    else:
        yield module


def _chain_of(block: nn.Module) -> nn.Sequential:
    """A residual block's main path: its layers in the order in which it defines them, without the shortcut."""
    return nn.Sequential(*(part for name, part in block.named_children() if "shortcut" not in name))


@torch.no_grad()
def keep_channels(group: Prunable, kept: Tensor) -> None:
    """Take out all channels of a group but those at the indices `kept`; the parameters are new objects afterwards."""
    producer, norm, consumer = group.producer, group.norm, group.consumer
    producer.weight = nn.Parameter(_in_order(producer.weight[kept], producer.weight))
    if producer.bias is not None:
        producer.bias = nn.Parameter(producer.bias[kept].clone())
    producer.out_channels = norm.num_features = consumer.in_channels = len(kept)
    if norm.affine:
        norm.weight = nn.Parameter(norm.weight[kept].clone())
        norm.bias = nn.Parameter(norm.bias[kept].clone())
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean = norm.running_mean[kept].clone()
        norm.running_var = norm.running_var[kept].clone()
    consumer.weight = nn.Parameter(_in_order(consumer.weight[:, kept], consumer.weight))


def _in_order(part: Tensor, whole: Tensor) -> Tensor:
    """The part, in the order of memory of the whole."""
    return part.contiguous(memory_format=torch.contiguous_format if whole.is_contiguous() else torch.channels_last)


@torch.no_grad()
def fit_to_state(module: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Give the convolutions and batch normalisations of a network the shapes of stored weights, without their values.

    Pruned networks are narrower than their settings say; this makes room for `load_state_dict`. Layers that fit are
    left alone.
    """
    changed = False
    for name, part in module.named_modules():
        if not isinstance(part, nn.Conv2d | nn.BatchNorm2d):
            continue
        for key, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            stored = state.get(f"{name}.{key}" if name else key)
            if stored is None or stored.shape == tensor.shape:
                continue
            if stored.ndim != tensor.ndim or any(
                new > old for new, old in zip(stored.shape, tensor.shape, strict=True)
            ):
                raise CheckpointError(
                    f"the stored {name}.{key} has shape {tuple(stored.shape)}, the network {tuple(tensor.shape)}: it "
                    "belongs to another network; train the run again"
                )
            changed = True
            blank = torch.zeros(stored.shape, dtype=tensor.dtype, device=tensor.device)
            if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
                blank = blank.contiguous(memory_format=torch.channels_last)
            setattr(part, key, nn.Parameter(blank) if isinstance(tensor, nn.Parameter) else blank)
        if isinstance(part, nn.Conv2d):
            part.out_channels, part.in_channels = part.weight.shape[0], part.weight.shape[1] * part.groups
        else:
            part.num_features = part.weight.shape[0] if part.affine else part.num_features
    return changed
