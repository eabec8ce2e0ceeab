"""Table 9: parameters, multiply-adds and time of both halves, PATROL beside all other defences."""

import statistics
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from sfumato import models, paper
from sfumato.compute import arranged, device_of, memory_format
from sfumato.defenses.patrol import prune_to, size_without_stem
from sfumato.models import count_macs, count_parameters
from sfumato.provenance import evidence
from sfumato.report.tables import Cell, Row, Table
from sfumato.studies.engine import Trial, Workspace
from sfumato.studies.plan import Budget

_IMAGE = (3, 32, 32)
_STEM = 16
_ROWS = {"patrol": "PATROL (pruned)", "others": "Others"}
_HALVES = ("encoder", "decoder")
_WARM_UP = 2  # repetitions


@dataclass(frozen=True)
class TimingTrial(Trial):
    """Table 9's one measurement: alone, since whatever ran beside it would be in its times.

    Attributes:
        budget: whose `timing` says how much is timed.
        device: where.
    """

    budget: Budget
    device: str = "auto"
    alone: ClassVar[bool] = True

    @property
    def key(self) -> str:
        """Name of the result."""
        return f"table9-{self.budget.name}"

    @torch.no_grad()
    def measure(self, workspace: Workspace) -> dict[str, Any]:
        """Sizes and times; both variants run in turn, so that a ratio compares the same seconds of the machine."""
        batch, repetitions = self.budget.timing["batch"], self.budget.timing["repetitions"]
        device = device_of(self.device)
        # The same memory format for both rows: it decides more of the time than an extra layer does.
        parts = {name: [half.to(device).eval() for half in _network(name)] for name in _ROWS}
        x = torch.rand(batch, *_IMAGE, device=device).contiguous(memory_format=memory_format(device, _IMAGE))
        z = parts["others"][0](x).contiguous()
        shapes = (_IMAGE, tuple(z.shape[1:]))
        rows: dict[str, dict[str, Any]] = {name: {} for name in _ROWS}
        seconds: dict[tuple[str, str], list[float]] = {}
        for name in _ROWS:
            for half, part, shape in zip(_HALVES, parts[name], shapes, strict=True):
                arranged(part, device, shape)
                sizes = {"macs": count_macs(part, shape), "macs_paper": count_macs(part, shape, "paper")}
                rows[name][half] = {"parameters": count_parameters(part), **sizes}
                seconds[name, half] = []
        for _ in range(_WARM_UP + repetitions):
            for (name, half), times in seconds.items():
                times.append(_time(parts[name][_HALVES.index(half)], x if half == "encoder" else z))
        for (name, half), times in seconds.items():
            del times[:_WARM_UP]
            rows[name][half]["milliseconds"] = 1e3 * statistics.median(times)
        pairs = {half: zip(seconds["patrol", half], seconds["others", half], strict=True) for half in _HALVES}
        return {
            "rows": rows,
            "ratio": {half: statistics.median(ours / theirs for ours, theirs in pairs[half]) for half in _HALVES},
            "batch": batch,
            "repetitions": repetitions,
            "whole_parameters": sum(rows["others"][half]["parameters"] for half in _HALVES),
            "evidence": evidence(device),
        }


def efficiency_table(spec: dict[str, Any], measured: dict[str, Any]) -> Table:
    """What was measured, beside the published table."""
    published = paper.published(spec["published"])
    lines = []
    for name, label in _ROWS.items():
        theirs = published[name, False]
        cells: list[Cell] = []
        for half in _HALVES:
            ours = measured["rows"][name][half]
            cells += [
                Cell(ours["parameters"] / 1e6, published=theirs[f"{half}_parameters_millions"], digits=3),
                Cell(ours["macs"] / 1e6, digits=2),
                Cell(ours["macs_paper"] / 1e6, published=theirs[f"{half}_macs_millions"], digits=2),
                Cell(ours["milliseconds"], published=theirs[f"{half}_milliseconds"], digits=2),
            ]
        lines.append(Row(label, tuple(cells)))
    whats = ("parameters, M", "MACs, M", "MACs as the paper counts, M", "ms per batch")
    columns = tuple(f"{half} {what}" for half in _HALVES for what in whats)
    times = {(name, half): published[name, False][f"{half}_milliseconds"] for name in _ROWS for half in _HALVES}
    ratio = {half: times["patrol", half] / times["others", half] for half in _HALVES}
    device = measured["evidence"]
    notes = (
        f"Batch {measured['batch']}, median of {measured['repetitions']} repetitions, both variants in turn; "
        f"{device['device']}, {device['threads']} threads, {device['precision']}. The paper: 100 batches of 128 on one "
        "RTX 4090, so its times stand for the ratio only.",
        "Time of PATROL over the others: "
        + ", ".join(f"{half} {measured['ratio'][half]:.2f} (published {ratio[half]:.2f})" for half in ratio)
        + ".",
        "MACs are multiply-adds of convolutions and linear layers; the paper's tool also counts biases, batch "
        "normalisation, activations and pooling.",
        f"The published 9.78 M parameters of the decoder are those of the whole network, "
        f"{measured['whole_parameters'] / 1e6:.3f} M; its cloud half has "
        f"{measured['rows']['others']['decoder']['parameters'] / 1e6:.2f} M.",
    )
    return Table(spec["title"], columns, tuple(lines), notes)


def _network(name: str) -> tuple[nn.Module, nn.Module]:
    stem = {"stem": _STEM} if name == "patrol" else {}
    edge, cloud = models.build("vgg11", cut=2, num_classes=10, image_shape=_IMAGE, **stem)
    if name == "patrol":
        prune_to(edge, size_without_stem(edge, _STEM, _IMAGE[0]))
    return edge, cloud


def _time(part: nn.Module, x: torch.Tensor) -> float:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    began = time.perf_counter()
    part(x)
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - began
