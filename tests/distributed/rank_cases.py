"""Cases that one process computes with everything and two processes with a part each; what they give has to agree."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import CEM, Channel, SplitModel, data
from sfumato.defenses import Batch, CEMDefense, Defense, Site, build
from sfumato.distributed import Part, Ranks, accumulating, backward, data_parallel, share_batch_norm
from sfumato.errors import Interrupted
from sfumato.models import build as build_network
from sfumato.training import TrainConfig, Trainer, train_run

Results = dict[str, Tensor]
CLASSES, SIGMA = 3, 0.2


def blobs(count: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of classes with three clumps each, in an order in which the last third has no sample of class 0."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    labels[2 * count // 3 :].clamp_(min=1)
    clump = torch.randint(0, 3, (count,), generator=generator)
    centres = 5 + 2 * torch.randn(CLASSES, 3, dim, generator=generator)
    return centres[labels, clump] + 0.3 * torch.randn(count, dim, generator=generator), labels


def own(values: Tensor, share: float = 0.5) -> Tensor:
    """This rank's rows: the first `share` of them for rank 0."""
    ranks = Ranks.current()
    cut = round(share * len(values))
    return values if ranks.alone else (values[:cut] if ranks.is_first else values[cut:])


# dimensions, samples: with 5 dimensions the primal form, with 64 the dual one for full covariances, and then fewer
# samples than clusters; the shares leave rank 1 with little, without class 0, or with nothing.
MIXTURES: dict[str, tuple[str, int, int, bool, float]] = {
    "full primal": ("full", 5, 200, True, 0.5),
    "full dual": ("full", 64, 150, False, 0.7),
    "diagonal, few samples": ("diagonal", 5, 7, True, 0.6),
    "spherical, nothing on rank 1": ("spherical", 5, 100, False, 1.0),
}


def mixture(form: str, dim: int, count: int, conditional: bool, share: float) -> Results:
    cem = CEM(num_classes=CLASSES, noise_std=SIGMA, covariance=form, class_conditional=conditional)  # type: ignore[arg-type]
    found: Results = {}
    for seed in (0, 1):  # the second starts from the first one's centres
        features, labels = blobs(count, dim)
        features = features + 0.3 * seed * torch.randn(features.shape, generator=torch.Generator().manual_seed(seed))
        cem.refresh(own(features, share), own(labels, share) if conditional else None)
        found |= {
            f"{seed}.weights": cem.weights,
            f"{seed}.means": cem.means,
            f"{seed}.covariances": cem.covariances,
            f"{seed}.information": torch.tensor(cem.information),
            f"{seed}.kept": cem.mixture.kept,
            f"{seed}.kept_clusters": cem.mixture.kept_clusters,
            f"{seed}.samples": torch.tensor(cem.mixture.samples),
            f"{seed}.posterior": torch.tensor(cem.diagnostics().own_cluster_posterior),
        }
    return found


LOSSES = {
    f"{scaling}-{update}-{form}": (scaling, update, form)
    for scaling, update, form in (
        ("per_dimension", "epoch", "full"),
        ("per_dimension", "running", "full"),
        ("per_dimension", "running", "diagonal"),
        ("literal", "epoch", "full"),
        ("literal", "running", "spherical"),
        ("as_published", "epoch", "spherical"),
    )
}


def loss(scaling: str, update: str, form: str) -> Results:
    """The gradients of two batches with unequal parts, as the average of gradients that are weighed by the shares."""
    features, labels = blobs(120, 6)
    cem = CEM(num_classes=CLASSES, noise_std=SIGMA, covariance=form, scaling=scaling, update=update)  # type: ignore[arg-type]
    cem.refresh(own(features), own(labels))
    found: Results = {}
    for step, (rows, share) in enumerate(((slice(10, 50), 0.5), (slice(60, 90), 0.3))):
        z = own(features[rows], share).clone().requires_grad_()
        value = cem(z, own(labels[rows], share))
        ranks = Ranks.current()
        (value * (len(z) * ranks.size / (rows.stop - rows.start))).backward()
        assert z.grad is not None
        found[f"{step}.gradient"] = ranks.gather(z.grad) / ranks.size
        found[f"{step}.value"] = value.detach()
    found["weights"], found["covariances"] = cem.weights, cem.covariances
    return found


def batch_norm() -> Results:
    generator = torch.Generator().manual_seed(3)
    found: Results = {}
    for name, layer, shape in (
        ("maps", nn.BatchNorm2d(4), (10, 4, 3, 3)),
        ("rows", nn.BatchNorm1d(4, affine=False, momentum=None), (10, 4)),
    ):
        share_batch_norm(layer)
        x = 50 + torch.randn(shape, generator=generator)
        target = torch.randn(shape, generator=generator)
        z = own(x, 0.3).clone().requires_grad_()
        for _ in range(2):
            out = layer(z)
        (out * own(target, 0.3)).sum().backward()
        ranks = Ranks.current()
        assert z.grad is not None
        found |= {f"{name}.out": ranks.gather(out.detach()), f"{name}.gradient": ranks.gather(z.grad)}
        found |= {f"{name}.{key}": value for key, value in layer.named_buffers()}
        found |= {f"{name}.d{key}": ranks.sum(value.grad) for key, value in layer.named_parameters()}
        layer.eval()
        found[f"{name}.evaluated"] = ranks.gather(layer(own(x, 0.3)).detach())
    return found


class OwnAdversary(Defense):
    """Trains a network of its own in a backward pass of its own."""

    name = "own_adversary"

    def attach(self, site: Site) -> None:
        dim = int(torch.tensor(site.feature_shape).prod())
        self.net = nn.Linear(dim, site.num_classes)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def penalty(self, batch: Batch) -> Tensor:
        return 0.1 * self.net(batch.features.flatten(1)).square().mean()

    def on_step(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        z = batch.features.detach().flatten(1)
        nn.functional.cross_entropy(self.net(z), batch.labels).backward()
        self.optimizer.step()

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.optimizer]


def _cem(update: str = "epoch", scaling: str = "per_dimension") -> CEMDefense:
    cem = CEM(num_classes=10, noise_std=0.3, clusters_per_class=2, update=update, scaling=scaling)  # type: ignore[arg-type]
    return CEMDefense(cem, lam=0.1, lam_schedule="constant")


TRAININGS: dict[str, Callable[[], list[Defense]]] = {
    "none": list,
    "cem": lambda: [_cem()],
    "cem_running": lambda: [_cem(update="running")],
    "cem_literal": lambda: [_cem(scaling="literal")],
    "distcorr+cem": lambda: [build("distcorr"), _cem()],
    "label_smoothing": lambda: [build("label_smoothing")],
    "ressfl": lambda: [build("ressfl", threshold=-1.0, width=4, blocks=1)],
    "patrol": lambda: [build("patrol", stem=6, prune_at=0.5, budget=1500, threshold=-1.0, width=4, blocks=1)],
    "own_adversary": lambda: [OwnAdversary()],
}
# 102 images are learned from: batches of 35, 35 and 32, or of 33, 33, 33 and 3, which no rank gets a part of.
CONFIG = TrainConfig(
    data="digits", width=6, epochs=2, limit=102, batch_size=35, lr=0.02, lr_schedule="paper", noise_std=0.0,
    augment=False, hold_out=0.0, device="cpu", precision="fp32",
)  # fmt: skip


def training(name: str) -> Results:
    """The weights after two epochs. Without noise and augmentation nothing is random but the order."""
    # An adversary of one's own averages its ranks' gradients by halves, so its batches have to be even.
    config = replace(CONFIG, batch_size=34 if name == "own_adversary" else 33 if "cem" in name else 35)
    fit = data.limit(data.load("digits", seed=0).train, 102, 0)
    defenses = TRAININGS[name]()
    torch.manual_seed(0)
    options = {key: value for one in defenses for key, value in one.model_options().items()}
    edge, cloud = build_network(
        "digits", cut=2, width=6, num_classes=10, image_shape=(1, 8, 8), bottleneck=4, **options
    )
    model = SplitModel(edge, Channel(noise_std=0.0), cloud)
    for one in defenses:
        one.attach(Site(model.feature_shape((1, 8, 8)), (1, 8, 8), 10))
    trainer = Trainer(model, defenses, fit, None, config)
    history = trainer.run()
    states = {"model": model.state_dict(), "defenses": nn.ModuleList(defenses).state_dict()}
    found = {f"{part}.{key}": value for part, state in states.items() for key, value in state.items()}
    for figure in ("loss", "task_loss", "accuracy_train"):
        found[figure] = torch.tensor([line[figure] for line in history])
    # Adam makes full steps of the rounding of a gradient that is 0, such as that of a bias before a BatchNorm.
    return {key: value for key, value in found.items() if "adversary" not in key or key.endswith("weight")}


class Pair(nn.Module):
    """Feature and answer; the noise is left out, so that one process and two see the same."""

    def __init__(self) -> None:
        super().__init__()
        self.edge, self.cloud = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid()), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z_hat = self.edge(x)
        return z_hat, self.cloud(z_hat)


def loop_of_a_user() -> Results:
    """DistributedDataParallel and CEM as the docs show them, each rank with its part of the set and of every batch."""
    features, labels = blobs(120, 6)
    torch.manual_seed(0)
    network = Pair()
    cem = CEM(num_classes=CLASSES, noise_std=SIGMA, clusters_per_class=2)
    called = network if Ranks.current().alone else nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(3):
        with torch.no_grad():
            cem.refresh(network.edge(own(features)), own(labels))
        for rows in torch.randperm(120, generator=torch.Generator().manual_seed(epoch)).split(40):
            z_hat, logits = called(own(features[rows]))
            answers = own(labels[rows])
            optimizer.zero_grad()
            (nn.functional.cross_entropy(logits, answers) + epoch * cem(z_hat, answers)).backward()
            optimizer.step()
    found = {name: value.detach().clone() for name, value in network.named_parameters()}
    return found | {"information": torch.tensor(cem.information), "means": cem.means}


class Net(nn.Module):
    """With a parameter that only the last rank uses, in the last pass, and one that nobody does."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.spare, self.unused = nn.Linear(4, 3), nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2))

    def forward(self, rows: Tensor, extra: Tensor | None) -> Tensor:
        value = self.net(rows).square().sum() / 12
        return value if extra is None else value + self.spare @ extra


def accumulated() -> Results:
    """Gradients added up over two backward passes, of parameters of which one rank or none knows anything."""
    ranks = Ranks.current()
    torch.manual_seed(0)
    net = Net()
    x = torch.randn(12, 4)
    shared = data_parallel(net, ranks)
    for number, rows in enumerate(own(x, 0.6).tensor_split(2)):
        with accumulating(shared, last=number == 1):
            extra = x[-1] if number == 1 and ranks.rank == ranks.size - 1 else None
            backward(shared(rows, extra) * ranks.size, ranks)
    assert net.unused.grad is None
    return {name: value.grad for name, value in net.named_parameters() if value.grad is not None}


def parts() -> Results:
    """Shards cover everything once, and so do the parts of a batch or each rank has all of it."""
    ranks = Ranks.current()
    found: Results = {}
    for count in (1, 2, 3, 4, 5, 33, 34):
        part: Part = ranks.split(count)
        rows = torch.arange(count)[part.rows]
        found[f"{count}.weight"] = ranks.sum(torch.tensor(part.weight)) / ranks.size
        fair = 1.0 if part.apart else len(rows) * ranks.size / count
        found[f"{count}.uneven"] = torch.tensor(part.weight - fair)
        for limit in (None, 1, 5, 16):
            sizes = part.sizes(limit)
            numbers = ranks.stack(torch.tensor(len(sizes)))
            assert sum(sizes) == len(rows)
            assert min(sizes) > 0
            found[f"{count}.{limit}.steps"] = numbers.max() - numbers.min()
        found[f"{count}.rows"] = ranks.gather(rows if part.counted else rows[:0])
        found[f"{count}.shard"] = ranks.gather(torch.arange(count)[ranks.shard(count)])
    return found


DETERMINISTIC = TrainConfig(
    data="digits", width=6, epochs=2, limit=200, batch_size=48, lr=0.1, cem=True, noise_std=0.1, device="cpu",
    micro_batch=10, defense="ressfl", defense_options={"width": 4, "blocks": 1, "threshold": -1.0},
)  # fmt: skip


def interrupted(folder: Path) -> Results:
    """Stopped by one rank alone, all stop; the same calls go on, and end as an undisturbed training."""
    ranks = Ranks.current()
    steps: list[int] = []
    stops = 0

    def should_stop() -> bool:
        return ranks.rank == ranks.size - 1 and len(steps) in (2, 5)

    while True:
        try:
            result = train_run(
                DETERMINISTIC, folder / "stopped", on_step=lambda *_: steps.append(1), should_stop=should_stop
            )
            break
        except Interrupted:
            stops += 1
    undisturbed = train_run(DETERMINISTIC, folder / "undisturbed")
    again = train_run(DETERMINISTIC, folder / "undisturbed")
    assert undisturbed == again
    return {
        "stops": torch.tensor(stops),
        "steps": torch.tensor(len(steps)),
        "differs": torch.tensor(result["accuracy"] != undisturbed["accuracy"]),
        "ranks": torch.tensor(result["evidence"].get("ranks", 1)),
    }


def cases() -> dict[str, Callable[[], Results]]:
    found: dict[str, Callable[[], Results]] = {}
    found |= {f"mixture {name}": lambda case=case: mixture(*case) for name, case in MIXTURES.items()}
    found |= {f"loss {name}": lambda case=case: loss(*case) for name, case in LOSSES.items()}
    found |= {f"training {name}": lambda name=name: training(name) for name in TRAININGS}
    for case in (batch_norm, loop_of_a_user, accumulated, parts):
        found[case.__name__] = case
    return found


def raised(work: Callable[[], Any]) -> str:
    try:
        work()
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return ""
