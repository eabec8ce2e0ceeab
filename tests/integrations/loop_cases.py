"""One small training, written by hand: what every integration has to end with."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import sfumato

EPOCHS, BATCH, PARTS, LAM, LR = 6, 12, 2, 2.0, 1.0
MIXED = torch.randperm(96, generator=torch.Generator().manual_seed(0))  # as the integrations mix a set


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    return torch.rand(3, 6, generator=generator)[labels] + 0.1 * torch.randn(96, 6, generator=generator), labels


def split_model() -> sfumato.SplitModel:
    """Without noise on the wire, so that every loop sees the same numbers; the mixture assumes some."""
    torch.manual_seed(0)
    edge = nn.Sequential(nn.Linear(6, 4), nn.Sigmoid())
    return sfumato.SplitModel(edge, sfumato.Channel(clip_norm=1.2), nn.Linear(4, 3))


def plug_in(**options: object) -> sfumato.CEM:
    return sfumato.CEM(**({"num_classes": 3, "noise_std": 0.1, "clusters_per_class": 2} | options))  # type: ignore[arg-type]


def by_hand(lam: float = LAM, refreshed: torch.Tensor = MIXED) -> dict[str, torch.Tensor]:
    """SGD over batches in their order, two of them accumulated for each step; lambda weighed by the competence."""
    x, y = data()
    model, cem = split_model(), plug_in()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    steps = len(x) // (BATCH * PARTS)
    for _ in range(EPOCHS):
        model.train()
        with sfumato.as_in_training(model):
            cem.refresh(model.features(x[refreshed]), y[refreshed])  # k-means++ starts by their order
        for step in range(steps):
            optimizer.zero_grad()
            for part in range(PARTS):
                start = (step * PARTS + part) * BATCH
                i = slice(start, start + BATCH)
                z_hat, _, logits = model.outputs(x[i])
                task_loss = cross_entropy(logits, y[i])
                ((task_loss + lam * cem(z_hat, y[i], task_loss)) / PARTS).backward()
            optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def differ(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert max(float((found[name] - value).abs().max()) for name, value in expected.items()) > 1e-3
