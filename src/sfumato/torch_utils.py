"""Running a module: in evaluation mode for a moment, or as a training step does; exact batch-norm statistics."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sfumato.errors import ConfigError

__all__ = [
    "ENOUGH_FOR_STATISTICS",
    "as_in_training",
    "evaluating",
    "exact_batch_norm",
    "free_to_look",
    "has_batch_norm",
    "kernel_flops",
    "wake",
]

_AT_HAND = {"cpu"}  # device types; emptied by tests that pretend to be on a GPU

ENOUGH_FOR_STATISTICS = 1024
"""Images from which `exact_batch_norm` tells means and variances."""


def free_to_look(tensor: Tensor) -> bool:
    """Whether looking at a value costs nothing. On a GPU it waits for all work before, and a step never does."""
    return tensor.device.type in _AT_HAND


@contextmanager
def evaluating(*modules: nn.Module, gradients: bool = False) -> Iterator[None]:
    """Evaluation mode inside, and no gradients unless asked for; afterwards every submodule has the mode it had.

    `module.train()` afterwards would not do: it also wakes the layers that somebody froze in evaluation mode.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        with torch.set_grad_enabled(gradients and torch.is_grad_enabled()):
            yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def as_in_training(module: nn.Module) -> Iterator[None]:
    """Forwards inside compute what a training step computes, and leave no trace.

    Layers keep the mode that they have in training (frozen ones stay frozen), batch norm uses the statistics of the
    batch, dropout is active. There are no gradients, and afterwards every buffer (running statistics above all) and the
    global random state are what they were. A mixture fitted to such features is the mixture of the features which the
    steps see; in evaluation mode batch norm uses statistics that lag behind the weights, at the first step by all.

        with sfumato.as_in_training(model):
            features = torch.cat([model.features(x) for x in images.split(128)])
        cem.refresh(features, labels)

    Args:
        module: in training mode; its frozen parts in evaluation mode.

    Raises:
        ConfigError: the module is in evaluation mode.

    >>> net = nn.BatchNorm1d(1)
    >>> with as_in_training(net):
    ...     print(f"{net(torch.tensor([[1.0], [3.0]])).abs().mean():.1f}")
    1.0
    >>> float(net.running_mean)  # no trace
    0.0
    """
    if not module.training:
        raise ConfigError("the module is in evaluation mode, in which no training step runs; call .train() on it first")
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    gpus = {buffer.device for buffer in (*module.parameters(), *module.buffers()) if buffer.device.type == "cuda"}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=gpus):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


def has_batch_norm(module: nn.Module) -> bool:
    """Whether the module holds a batch norm in training mode that keeps running statistics."""
    return any(_follows(part) for part in module.modules())


@contextmanager
def exact_batch_norm(module: nn.Module) -> Iterator[None]:
    """Forwards inside, in training mode, make the statistics of batch norm exact for the weights of now.

    In training a running average with momentum 0.1 follows the weights with a lag. Features that a defence makes tight
    have a variance so small that the lag shows: accuracy in evaluation mode stays 5 to 15 points below that of the
    training batches until the learning rate has fallen. The average over the batches that run inside replaces it:

        mean = 1/B sum_b mean_b,    variance = 1/B sum_b n_b / (n_b - 1) var_b

    A few hundred images are enough. Frozen layers (in evaluation mode) keep their statistics, and where no batch runs
    everything stays as it was.

    Args:
        module: in training mode; its frozen parts in evaluation mode.

    >>> net = nn.BatchNorm1d(1)
    >>> with exact_batch_norm(net):
    ...     _ = net(torch.tensor([[1.0], [3.0]]))
    >>> float(net.running_mean), float(net.running_var)
    (2.0, 2.0)
    """
    layers = [(part, part.momentum, _statistics(part)) for part in module.modules() if _follows(part)]
    before = [[value.clone() for value in statistics] for _, _, statistics in layers]
    for part, _, _ in layers:
        part.reset_running_stats()
        part.momentum = None  # a cumulative average
    try:
        with torch.no_grad():
            yield
    finally:
        for (part, momentum, (mean, var, count)), (old_mean, old_var, old_count) in zip(layers, before, strict=True):
            part.momentum = momentum
            if not count:
                mean.copy_(old_mean)
                var.copy_(old_var)
            count.add_(old_count)


def _follows(part: nn.Module) -> TypeGuard[_BatchNorm]:
    return isinstance(part, _BatchNorm) and part.training and part.track_running_stats and part.momentum is not None


def _statistics(part: _BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    mean, var, count = part.running_mean, part.running_var, part.num_batches_tracked
    assert mean is not None
    assert var is not None
    assert count is not None
    return mean, var, count


def wake(module: nn.Module) -> None:
    """Training mode for a module that is in evaluation mode as a whole, such as one that was loaded from a file.

    Where at least one layer with parameters or buffers is in training mode, those that are not were frozen on purpose
    (batch normalisation that is not to be fine-tuned), and every layer stays as it is.
    """
    holders = [part for part in module.modules() if [*part.parameters(recurse=False), *part.buffers(recurse=False)]]
    if not any(part.training for part in holders):
        module.train()


def kernel_flops(kernel: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Floating-point operations of one kernel: two for each multiply-add of a convolution, matrix product or attention.

    Other operations do not count. The figures are those of `torch.utils.flop_counter`, whose registry lacks the
    attention of CPUs, recurrent layers and `nn.Bilinear`.

    Args:
        kernel: as a `TorchDispatchMode` gets it, with what it was called with and what it gave.
        args: its positional arguments.
        kwargs: its named arguments.
        out: its result.
    """
    from torch.utils.flop_counter import flop_registry, sdpa_flop_count

    packet = kernel._overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out))
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        return int(sdpa_flop_count(*(tensor.shape for tensor in args[:3])))
    if packet is torch.ops.aten._trilinear:  # of nn.Bilinear: rows (N, I), weight (O, I, J)
        return 2 * len(args[0]) * args[1].numel()
    if packet in (torch.ops.aten.mkldnn_rnn_layer, torch.ops.aten._cudnn_rnn):  # steps (T, N, I), weights of the gates
        weights = args[1:3] if packet is torch.ops.aten.mkldnn_rnn_layer else args[1]
        return 2 * args[0].shape[:2].numel() * sum(weight.numel() for weight in weights if weight.ndim == 2)
    return 0
