"""`sfumato cuts`: where can a model be cut, and what does each cut cost?"""

import re
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.cli.console import say, table
from sfumato.cli.parser import Parsed, save_json
from sfumato.errors import ConfigError
from sfumato.importing import call_named, import_named
from sfumato.split import Cut, cuts

_INPUTS = 2  # of a made-up batch: enough to see what depends on its size


def run(parsed: Parsed) -> None:
    """Run the model once, list."""
    model, example = _load(parsed.target, parsed.input_shape)
    listed = cuts(model, example)
    possible = [cut for cut in listed if cut.possible]
    heads = ("cut behind", "feature", "bytes", "at 8 bit", "work", "parameters", "bounds")
    title = f"{type(model).__name__}: on the wire and on the device, for one input"
    table(title, heads, [_cells(cut) for cut in possible], whole=True)
    refused = [cut for cut in listed if not cut.possible]
    if parsed.all:
        for cut in refused:
            say(f"no cut at {cut.layer!r}: {cut.obstacle}")
    elif refused:
        several = len(refused) > 1
        have, them = ("layers have", "them") if several else ("layer has", "it")
        say(f"{len(refused)} more {have} no cut behind {them}; --all lists {them} with the reason")
    value = {"target": parsed.target, "input_shape": list(example.shape[1:]), "cuts": [_plain(cut) for cut in listed]}
    save_json(parsed.json, value)


def _cells(cut: Cut) -> tuple[str, ...]:
    return (
        cut.layer,
        "x".join(map(str, cut.shape)),
        f"{cut.bytes_on_wire():,}",
        f"{cut.bytes_on_wire(8):,}",
        f"{cut.share:.1%}",
        f"{cut.edge_parameters:,}",
        "none" if cut.bounds is None else f"{cut.bounds[0]:g} to {cut.bounds[1]:g}",
    )


def _plain(cut: Cut) -> dict[str, Any]:
    sizes = {"dimensions": cut.dimensions, "bytes": cut.bytes_on_wire(), "bytes_8bit": cut.bytes_on_wire(8)}
    return {**asdict(cut), "possible": cut.possible, **(sizes if cut.possible else {})}


def _load(target: str, shape: str | None) -> tuple[nn.Module, Tensor]:
    named = import_named(target)
    made = named if isinstance(named, nn.Module) else call_named(target)
    pair = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    model, example = pair
    if not isinstance(model, nn.Module) or not (example is None or isinstance(example, Tensor)):
        got = " and a ".join(type(part).__name__ for part in (made if isinstance(made, tuple) else (made,)))
        raise ConfigError(f"{target} gave a {got}; return a model (torch.nn.Module), or a model and an example batch")
    if shape is not None:
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        sizes = (_INPUTS, *_sizes(shape))
        values = torch.rand(sizes, generator=torch.Generator().manual_seed(0))
        return model, values.to(like.device, like.dtype)
    if example is None:
        raise ConfigError(
            f"{target} gives a model without an example; name the shape of one input, such as --input-shape 3,32,32, "
            "or return the model and an example batch"
        )
    return model, example


def _sizes(text: str) -> list[int]:
    parts = re.split(r"[,x]", text.strip().strip("()[]"))
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"--input-shape is {text!r}; give positive whole numbers, such as 3,32,32")
    return [int(part) for part in parts]
