"""Does CEM train at its defaults, and can it be made to collapse? The table of docs/results.md.

    python benchmarks/defaults.py results/defaults.json --data digits fashion-mnist cifar10 --cifar10 ~/data/cifar10

Per data set and seed: without CEM, with CEM at its default, and with a tenth, once and ten times the default lambda on
every schedule. Every training is one line of the file, written when it is finished; the same command resumes.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sfumato.attacks import DecoderConfig, measure_leakage
from sfumato.errors import DivergedError
from sfumato.files import write_json
from sfumato.provenance import evidence
from sfumato.training import TrainConfig, load_data, load_run, train_run
from sfumato.training.inversion import attack_suite

SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"data": "digits", "epochs": 30},
    "fashion-mnist": {"data": "fashion-mnist", "size": 14, "limit": 10000, "test_limit": 2000, "epochs": 10},
    "cifar10": {"data": "cifar10", "limit": 4000, "test_limit": 1000, "epochs": 12},
}
GRID_EPOCHS = {"cifar10": 4}  # where the whole trainings of the grid would take hours

DECODERS = {
    "digits": {"epochs": 80, "width": 16, "blocks": 1, "lr": 1e-2},
    "fashion-mnist": {"epochs": 10, "width": 16, "blocks": 1, "lr": 1e-2},
    "cifar10": {"epochs": 15, "width": 32, "blocks": 1},
}
SCHEDULES = ("constant", "ramp", "lr_coupled")


def configurations(data: str, seed: int, data_dir: str | None) -> list[TrainConfig]:
    """Without CEM, the default, and the grid of lambdas and schedules, from the largest lambda down."""
    shared = SETTINGS[data] | {"seed": seed, "data_dir": data_dir, "device": "cpu", "watch": False}
    plain, default = TrainConfig(**shared), TrainConfig(**shared, cem=True)
    shared |= {"epochs": GRID_EPOCHS.get(data, shared["epochs"])}
    grid = [
        TrainConfig(**shared, cem=True, lam=default.lam * factor, lam_schedule=schedule)
        for factor in (10, 1, 0.1)
        for schedule in SCHEDULES
    ]
    return list({config.digest(): config for config in (plain, default, *grid)}.values())


def measure(config: TrainConfig, attacked: bool) -> dict[str, Any]:
    """Train, and, if asked, attack with the suite; one row."""
    sets = load_data(config)
    row: dict[str, Any] = {
        "data": config.data,
        "seed": config.seed,
        "cem": config.cem,
        "lam": config.lam if config.cem else 0.0,
        "schedule": config.lam_schedule if config.cem else None,
        "noise_std": config.noise_std,
        "chance": float(torch.bincount(sets.test.labels).max()) / len(sets.test),
        "caveat": sets.caveat,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        try:
            result = train_run(config, folder, sets=sets)
        except DivergedError as error:
            return row | {"accuracy": None, "stopped": str(error)}
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        fits = [line["cem_fit"] for line in lines if line.get("cem_fit") is not None]
        row |= {"accuracy": result["accuracy"], "seconds": result["seconds"], "fit": fits}
        if attacked:
            run = load_run(folder)
            suite = attack_suite(run, sets, [DecoderConfig(**DECODERS[config.data], seed=config.seed)])
            row |= {"mse": suite.attacks[suite.strongest].result["test"]["mse"], "strongest": suite.strongest}
            row |= {"leakage": measure_leakage(run.model, sets.test, seed=config.seed).as_dict()}
    return row


def main() -> int:
    """The rows that are missing, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", nargs="+", choices=SETTINGS, default=["digits"])
    parser.add_argument("--cifar10", help="folder of CIFAR-10")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", choices=("attacked", "grid"), help="half of the rows, for a file of its own")
    words = parser.parse_args()
    torch.set_num_threads(1)
    stored: dict[str, Any] = json.loads(words.out.read_text(encoding="utf-8")) if words.out.exists() else {"rows": {}}
    for data in words.data:
        for seed in words.seeds:
            for number, config in enumerate(configurations(data, seed, words.cifar10 if data == "cifar10" else None)):
                key, attacked = f"{data}-s{seed}-{config.digest()}", number < 2
                if key in stored["rows"] or words.rows == ("grid" if attacked else "attacked"):
                    continue
                row = measure(config, attacked=attacked)
                stored["rows"][key] = row | {"settings": asdict(config) | {"data_dir": None}}
                stored["evidence"] = evidence("cpu")
                write_json(words.out, stored)
                shown = {name: row.get(name) for name in ("lam", "schedule", "accuracy", "mse", "strongest")}
                sys.stdout.write(f"{key} {shown}\n")
                sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
