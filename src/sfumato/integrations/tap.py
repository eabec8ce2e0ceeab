"""Reading z_hat out of a network that somebody else runs."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import ConfigError, FeatureError
from sfumato.split import SplitModel
from sfumato.split.survey import plain_name
from sfumato.torch_utils import as_in_training

__all__ = ["Tap", "inputs_of", "labels_of"]

_LABELS = ("labels", "label", "targets", "target", "y")


class _Seen(Exception):
    """Leaves a forward as soon as the feature is known."""


class Tap:
    """Keeps the feature of a network's last forward.

    `features` is the `SplitModel` in it, the module whose output is z_hat, or a dotted name of either; None looks for
    the one SplitModel.
    """

    def __init__(self, network: nn.Module, features: str | nn.Module | None = None) -> None:
        found = _find(network, features)
        self.split = found if isinstance(found, SplitModel) else None
        self._source = found.edge if isinstance(found, SplitModel) else found
        self._leave = False
        self._kept: Tensor | None = None
        self._handle = self._source.register_forward_hook(self._see)

    def _see(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise ConfigError(
                f"the module of the features gives a {type(output).__name__}, and one tensor crosses the cut; name a "
                "module that gives a tensor"
            )
        self._kept = output if self.split is None else self.split.channel.bound(output)
        if self._leave:
            raise _Seen

    def take(self) -> Tensor:
        """z_hat of the last forward, with its graph; once."""
        kept, self._kept = self._kept, None
        if kept is None:
            raise FeatureError("the step did not run the module of the features; name the one that does with features=")
        return kept

    def why(self) -> str:
        """Why the feature of a training step may lack a graph, with the remedy."""
        if any(parameter.requires_grad for parameter in self._source.parameters()):
            return (
                "it was computed under torch.no_grad() or in re-entrant checkpointing; call "
                "torch.utils.checkpoint.checkpoint(..., use_reentrant=False), in a Hugging Face Trainer "
                'gradient_checkpointing_kwargs={"use_reentrant": False}'
            )
        return "all layers up to it are frozen; unfreeze some (requires_grad_(True)), or train without CEM"

    def collect(
        self, network: nn.Module, batches: Iterable[Any], run: Callable[[Any], Any], labels: Callable[[Any], Any]
    ) -> tuple[Tensor, Tensor | None]:
        """z_hat (N, D) of all batches as training steps compute it, and labels; what lies behind the cut is not run.

        The order of batches that a later iteration draws does not change by this one.
        """
        features: list[Tensor] = []
        targets: list[Tensor] = []
        self._leave = True
        try:
            with as_in_training(network):
                for batch in batches:
                    with contextlib.suppress(_Seen):
                        run(batch)
                    features.append(self.take().flatten(1).float())
                    if (target := labels(batch)) is not None:
                        targets.append(torch.as_tensor(target).to(features[-1].device))
        finally:
            self._leave = False
        if not features:
            raise FeatureError("there are no batches to refresh the mixture with; give a training set")
        return torch.cat(features), torch.cat(targets) if targets else None

    def close(self) -> None:
        """Stop listening."""
        self._handle.remove()


def labels_of(batch: Any) -> Any:
    """The labels of a batch: the second of two parts, or its entry of a usual name; None where there are none."""
    if isinstance(batch, tuple | list):
        if len(batch) > 2:
            raise ConfigError(
                f"a batch has {len(batch)} parts, and nobody says which of them are the labels: give "
                "labels=lambda batch: batch[-1], say, and where the forward takes more than the first part, "
                "inputs=lambda batch: ..."
            )
        return batch[1] if len(batch) > 1 else None
    if hasattr(batch, "keys"):
        return next((batch[name] for name in _LABELS if name in batch), None)
    return None


def inputs_of(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a forward takes: the first part of a batch, or all entries but the labels by name."""
    if isinstance(batch, tuple | list):
        return (batch[0],), {}
    if hasattr(batch, "keys"):
        return (), {name: batch[name] for name in batch.keys() if name not in _LABELS}  # noqa: SIM118
    return (batch,), {}


def _find(network: nn.Module, features: str | nn.Module | None) -> nn.Module:
    if isinstance(features, nn.Module):
        return features
    if isinstance(features, str):
        if not features:
            raise ConfigError("features is an empty name; name the module that gives z_hat")
        named = {plain_name(name): part for name, part in network.named_modules()}
        if (part := named.get(plain_name(features))) is None:
            raise ConfigError(f"{type(network).__name__} has no module {features!r}; model.named_modules() lists all")
        return part
    found = [part for part in network.modules() if isinstance(part, SplitModel)]
    if len(found) != 1:
        raise ConfigError(
            f"{type(network).__name__} holds {len(found)} SplitModels; say with features= which module gives z_hat"
        )
    return found[0]
