"""Noise with a shape against white noise on frozen encoders: the table of docs/protect.md.

    python benchmarks/protect.py results/protect.json --data digits fashion-mnist

Per data set and seed an encoder is trained without noise and frozen; `sfumato.protect` then finds the strength of every
shape at one point of accuracy lost, with the cloud as it is and with the cloud retuned, and attacks each. What the file
holds already is not measured again.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from sfumato.audit import DataOptions, audit_sets, load_target
from sfumato.files import write_json
from sfumato.protect import ProtectConfig, protect
from sfumato.provenance import evidence
from sfumato.training import TrainConfig, train_run

SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"data": "digits", "epochs": 30},
    "fashion-mnist": {"data": "fashion-mnist", "size": 14, "limit": 6000, "test_limit": 2000, "epochs": 8},
}
LOSE = {"digits": 1.0, "fashion-mnist": 1.0}
KEPT = ("name", "accuracy", "accuracy_validation", "error", "error_spread", "identified", "identified_error",
        "information", "identified_at_most", "singular", "strongest", "noise_std")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--data", nargs="+", default=["digits"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--decoder-epochs", type=int, default=30)
    words = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(words.path.read_text())["rows"] if words.path.exists() else []
    for data in words.data:
        for retuned in (False, True):
            for seed in range(words.seeds):
                if any((row["data"], row["seed"], row["retuned"]) == (data, seed, retuned) for row in rows):
                    continue
                rows.append(measure(data, seed, retuned, words.decoder_epochs))
                print(data, seed, retuned, rows[-1]["chosen"], rows[-1]["seconds"], flush=True)
                write_json(words.path, {"rows": rows, "evidence": evidence("cpu")})


def measure(data: str, seed: int, retuned: bool, decoder_epochs: int) -> dict[str, Any]:
    """One frozen encoder."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        train_run(TrainConfig(**SETTINGS[data], noise_std=0.0, seed=seed, device="cpu", watch=False), run)
        subject = load_target(str(run))
        config = ProtectConfig(
            LOSE[data], retune_cloud=retuned, attacker_images=6000, decoder_epochs=decoder_epochs, seed=seed
        )
        found = protect(subject, audit_sets(subject, DataOptions()), Path(name) / "protected", config)
    shapes = [
        {name: line[name] for name in KEPT} | {"attacks": {key: one["mse"] for key, one in line["attacks"].items()}}
        for line in found["shapes"]
    ]
    kept = ("chosen", "clean_accuracy", "floor", "lose_at_most", "values", "images", "mean_image_mse", "seconds")
    return {"data": data, "seed": seed, "retuned": retuned, "shapes": shapes} | {name: found[name] for name in kept}


if __name__ == "__main__":
    main()
