"""One of two processes: all cases, what has to be refused, a command, and a rank that falls silent."""

import json
import os
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from rank_cases import CLASSES, CONFIG, SIGMA, blobs, cases, interrupted, own, raised
from safetensors.torch import save_file

from sfumato import CEM, data
from sfumato.cli.main import main as command
from sfumato.distributed import Ranks, joined
from sfumato.errors import ConfigError, DataError
from sfumato.files import write_text
from sfumato.training import train_run


def refusals(folder: Path) -> dict[str, str]:
    """The sentences that this rank gets."""
    ranks = Ranks.current()
    features, labels = blobs(40, 4)
    damaged = own(features).clone()
    if ranks.rank == 1:
        damaged[3, 2] = torch.nan
    cem = CEM(num_classes=CLASSES, noise_std=SIGMA)
    sets = data.load("digits", seed=0)
    other = replace(sets, train=data.limit(sets.train, 300 + ranks.rank, 0))

    def refuse_on_one() -> None:
        with ranks.together():
            if ranks.rank == 1:
                raise DataError("disk 1 is on fire; leave the building")

    def work_of_rank_0() -> None:
        raise ConfigError("rank 0 is tired; let it sleep")

    return {
        "nan": raised(lambda: cem.refresh(damaged, own(labels))),
        "label": raised(lambda: cem.refresh(own(features), own(labels) + 2 * ranks.rank)),
        "dimensions": raised(lambda: cem.refresh(own(features)[:, : 4 - ranks.rank], own(labels))),
        "one": raised(refuse_on_one),
        "first": raised(lambda: ranks.first(work_of_rank_0)),
        "images": raised(lambda: train_run(CONFIG, folder / "images", sets=other)),
        "setting": raised(lambda: train_run(replace(CONFIG, lr=0.1 + ranks.rank), folder / "setting", sets=sets)),
        "batch": raised(lambda: train_run(replace(CONFIG, batch_size=1), folder / "batch", sets=sets)),
        "engine": raised(lambda: train_run(replace(CONFIG, engine="compiled"), folder / "engine", sets=sets)),
        "folder": raised(lambda: train_run(replace(CONFIG, lr=0.3), folder / "undisturbed", sets=sets)),
        "shared": json.dumps(ranks.first(lambda: {"from": ranks.rank, "umlaut": "ü", "nothing": None})),
    }


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with joined("cpu", timeout=60):
        rank = Ranks.current().rank
        for name, case in cases().items():
            found = {key: value.contiguous().clone() for key, value in case().items()}
            save_file(found, folder / f"{name}.{rank}.safetensors")
        save_file(interrupted(folder), folder / f"interrupted.{rank}.safetensors")
        (folder / f"refusals.{rank}.json").write_text(json.dumps(refusals(folder)), encoding="utf-8")
        words = ["--limit", "100", "--batch-size", "45", "--width", "6", "--epochs", "1", "--device", "cpu"]
        assert command(["train", *words, "--run", f"{folder}/command", "--json", f"{folder}/figures.json"]) == 0
    os.environ["MASTER_PORT"] = os.environ["SECOND_PORT"]
    with joined("cpu", timeout=1) as ranks:
        ranks.sum(torch.ones(1))
        if ranks.is_first:
            write_text(folder / "silent", raised(lambda: ranks.sum(torch.ones(3))))
        else:
            while not (folder / "silent").exists():
                time.sleep(0.1)
        os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
