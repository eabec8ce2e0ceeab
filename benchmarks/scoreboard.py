"""Every figure of the page on speed: `python benchmarks/scoreboard.py --json results/bench.json`.

`sfumato bench` measures what users ask for. Here stand beside it the loop of the paper's authors, every defence, 300
clusters, how the cost grows, and the share of the machine's limit.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from growth import scaling
from memory import refresh_memory
from plain import attack_step, throughput
from published_loop import against_published
from roofline import roofline
from sfumato.bench import Ratio, run_bench
from sfumato.bench.training import CONFIG, QUICK, random_images
from sfumato.compute import cpu_has_bf16
from sfumato.errors import SfumatoWarning
from sfumato.files import write_json
from steps import batches, defense_steps, many_clusters


def measure(rounds: int, quick: bool) -> dict[str, object]:
    """All rows, sweeps and shares."""

    def tell(row: Ratio) -> None:
        sys.stderr.write(f"{row.name}: {row.ratio:.3f} x {row.baseline} ({row.detail})\n")

    result = run_bench(rounds=rounds, quick=quick, tell=tell)
    config = QUICK if quick else CONFIG
    images = random_images(100 if quick else 2560)
    seconds = result.pop("seconds")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SfumatoWarning)  # what random features are worth does not matter for speed
        attack, seconds["attack step"] = attack_step(max(2, rounds // 2), 16 if quick else 256)
        rows = [
            throughput(rounds, images, config),
            attack,
            many_clusters(rounds, len(images), 1500 if quick else 50_000, config),
            against_published(rounds, images, config),
            *defense_steps(max(2, rounds // 2), images, config),
            batches(rounds, images, config.batch_size),
            refresh_memory(*((1500, 64) if quick else (50_000, 512))),
        ]
        for row in rows:
            tell(row)
        result["rows"] += [row.as_dict() for row in rows]
        result["scaling"] = [sweep.as_dict() for sweep in scaling(max(2, rounds // 3), quick=quick)]
    result["roofline"] = roofline(
        torch.device("cpu"),
        seconds["training step"],
        seconds["attack step"],
        cpu_has_bf16(),
        max(3, rounds // 3),
        quick=quick,
    )
    return result


def main() -> None:
    """Read the words and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="how often each variant runs")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: show that it works, and nothing about speed")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    words = parser.parse_args()
    result = measure(words.rounds, words.quick)
    if words.json is None:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    else:
        write_json(words.json, result)


if __name__ == "__main__":
    main()
