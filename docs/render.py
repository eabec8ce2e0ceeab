"""Renders the tables in README.md and docs/ from results/, so that no number is typed by hand: `make docs`."""

import json
import re
import statistics
import sys
from argparse import Action
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sfumato.attacks import suite_verdict
from sfumato.audit import METRICS
from sfumato.cli.commands import COMMANDS, parser_of
from sfumato.cli.parser import head_of
from sfumato.files import write_text
from sfumato.report.demo import demo_table
from sfumato.report.tables import Cell, Row, Table, to_markdown
from sfumato.report.verdict import demo_verdict
from sfumato.studies import Store
from sfumato.studies.plan import load_budget, load_rows, load_spec
from sfumato.studies.presentation import present

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from growth import scaling_figure  # noqa: E402

PAGES = (
    "README.md",
    "docs/index.md",
    "docs/speed.md",
    "docs/serving.md",
    "docs/results.md",
    "docs/reproduce.md",
    "docs/tune.md",
    "docs/protect.md",
    "docs/distributed.md",
    "docs/audit.md",
    "docs/cli.md",
)


def demo(result: dict[str, Any]) -> str:
    heads, lines = demo_table(result["rows"])
    rows = [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *lines)]
    verdict = demo_verdict(
        result.get("equal_accuracy"), [suite_verdict(row) for row in result["rows"]], images=result["test_images"]
    )
    evidence = result["evidence"]
    return "\n\n".join(
        [
            f"**{verdict.headline}**",
            "\n".join(rows),
            " ".join(verdict.notes),
            f"Mean ± standard deviation over seeds, {result['test_images']} unseen digits; {evidence['device']}, torch "
            f"{evidence['torch']}, {result['seconds']:.0f} s for the whole demo.",
        ]
    )


def study(result: dict[str, Any]) -> str:
    """The study on the digits as it was run before its results were stored one by one."""

    def measured(row: dict[str, Any]) -> tuple[Cell, Cell]:
        return Cell(row["accuracy"], row["accuracy_se"], digits=1, percent=True), Cell(row["mse_test"], row["mse_se"])

    columns, evidence, overall = ("accuracy", "error (MSE)"), result["evidence"], result["overall"]
    low, high = overall["ci"]
    points = tuple(
        Row(
            f"σ {row['noise_std']:g}, λ {row['lam']:g}",
            (
                *measured(row),
                Cell(row["curve_mse"]),
                Cell(row["ratio"], digits=2, note="{:.2f}–{:.2f}".format(*row["ratio_ci"])),
            ),
        )
        for row in result["points"]
    )
    noise = tuple(Row(f"σ {row['noise_std']:g}", measured(row)) for row in result["noise_curve"])
    notes = (
        "σ: standard deviation of the noise; λ: weight of CEM. ±: standard error over folds. Ratio: the attacker's "
        "error with CEM over that with noise alone at the same accuracy, with its 95 % interval; above 1, CEM protects "
        "better.",
        "Its attacks kept no history: convergence not judged (older rule), so the errors are no evidence of safety.",
    )
    heads = (*columns, "noise alone at this accuracy", "ratio")
    return "\n\n".join(
        [
            f"At equal accuracy CEM leaves the attacker {overall['ratio']:.2f} times the error of noise alone (95 % "
            f"interval {low:.2f} to {high:.2f}, {overall['folds']} folds over all {overall['digits']:,} digits).",
            to_markdown(Table("Noise with CEM", heads, points, notes, corner="setting")).strip(),
            to_markdown(Table("Noise alone", columns, noise, corner="setting")).strip(),
            f"{evidence['device']}, one thread, torch {evidence['torch']}, {result['seconds']:.0f} s.",
        ]
    )


def bench(result: dict[str, Any]) -> str:
    lines = ["| what | ratio | over | target | figures |", "|---|---|---|---|---|"]
    for row in result["rows"]:
        target = (
            "" if row["target"] is None else f"{row['better']} {row['target']:g}: {'met' if row['met'] else 'missed'}"
        )
        lines.append(f"| {row['name']} | {row['ratio']:.3f} | {row['baseline']} | {target} | {row['detail']} |")
    evidence = result["evidence"]
    lines += [
        "",
        f"{evidence['device']}, {evidence['threads']} threads, torch {evidence['torch']}, commit {evidence['commit']}.",
    ]
    if "load" in result:
        before, after = result["load"]
        lines[-1] += f" Processes that wanted one of the {result['cores']} cores: {before} before, {after} after."
    return "\n".join(lines)


def ranks(result: dict[str, Any]) -> str:
    lines = [
        "| training | processes | accuracy, each seed | in-sample information, diagonal, each seed |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        accuracy = ", ".join(f"{100 * value:.1f}" for value in row["accuracy"])
        information = ", ".join(f"{value:.1f}" for value in row["information"])
        lines.append(f"| {row['training']} | {row['ranks']} | {accuracy} % | {information} nats |")
    evidence, seeds = result["evidence"], ", ".join(map(str, result["seeds"]))
    lines += [
        "",
        f"Digits, {result['epochs']} epochs, σ = {result['noise_std']:g}, seeds {seeds}; "
        f"{evidence['device']}, {evidence['threads']} thread per process, torch {evidence['torch']}, gloo.",
    ]
    return "\n".join(lines)


def tune(result: dict[str, Any]) -> str:
    lines = [
        "| seed | noise | λ | points lost on unseen images | attacker's error | undefended | best of the grid | kept |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in result["lines"]:
        best = f"{line['best_error']:.4f} | {line['kept']:.0%}" if "kept" in line else " | "
        lines.append(
            f"| {line['seed']} | {line['noise_std']:g} | {line['lam']:g} | {100 * line['lost']:.2f} "
            f"| {line['error']:.4f} | {line['baseline_error']:.4f} | {best} |"
        )
    evidence = result["evidence"]
    lines += [
        "",
        f"The floor is met in {result['met']} of {result['seeds']} seeds; {result['mean_kept']:.0%} of the best error "
        f"is kept on average over {result['whole_grids']} whole grids; a search takes {result['mean_trainings']:.0f} "
        f"trainings, the grid {result['grid_trainings']}. {evidence['device']}, torch {evidence['torch']}.",
    ]
    return "\n".join(lines)


_DEFAULTS_DATA = {
    "digits": "digits",
    "fashion-mnist": "Fashion-MNIST 14x14, 10,000 images",
    "cifar10": "CIFAR-10 4,000 images",
}


def defaults(result: dict[str, Any]) -> str:
    """Per data set: CEM at its default against the same noise, then the grid; means over seeds."""
    lines = [
        "| data | lambda | schedule | accuracy, each seed | fit | strongest attack's MSE | identified |",
        "|---|---|---|---|---|---|---|",
    ]
    cells: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for row in result["rows"].values():
        where = f"{row['data']}, {row['settings']['epochs']} epochs"
        cells.setdefault((where, row["lam"], row["schedule"] or "none"), []).append(row)
    for (data, lam, schedule), rows in sorted(cells.items()):
        kept = [row for row in rows if row["accuracy"] is not None]
        accuracy = ", ".join(f"{100 * row['accuracy']:.1f}" for row in kept) + " %"
        stopped = len(rows) - len(kept)
        fits = [value for row in kept for value in row["fit"]]
        fit = f"{min(fits):.2f} to {max(fits):.2f}" if fits else ""
        attacked = [row for row in kept if "mse" in row]
        error = f"{statistics.fmean(row['mse'] for row in attacked):.4f}" if attacked else ""
        named = f"{statistics.fmean(row['leakage']['identified'] for row in attacked):.1%}" if attacked else ""
        note = f"; {stopped} stopped at chance" if stopped else ""
        lines.append(f"| {data} | {lam:g} | {schedule} | {accuracy}{note} | {fit} | {error} | {named} |")
    evidence = result["evidence"]
    trained = "; ".join(_DEFAULTS_DATA[data] for data in sorted({row["data"] for row in result["rows"].values()}))
    caveats = sorted({row["caveat"] for row in result["rows"].values() if row["caveat"]})
    lines += [
        "",
        f"One number per seed, test images; {trained}; noise 0.1. {evidence['device']}, one thread, torch "
        f"{evidence['torch']}.",
        "",
        " ".join(caveats),
    ]
    return "\n".join(lines)


def protect(result: dict[str, Any]) -> str:
    lines = [
        "| data | cloud | noise | accuracy | attackers' error | times white | identified | information, nats |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault((row["data"], row["retuned"]), []).append(row)
    for (data, retuned), rows in groups.items():
        for label in ("white", "chosen"):
            shown = [
                next(one for one in row["shapes"] if one["name"] == (row["chosen"] if label == "chosen" else "white"))
                for row in rows
            ]
            white = [next(one for one in row["shapes"] if one["name"] == "white") for row in rows]
            times = [one["error"] / base["error"] for one, base in zip(shown, white, strict=True)]
            names = ", ".join(dict.fromkeys(one["name"] for one in shown))
            cells = [
                data,
                "retuned" if retuned else "as it was",
                f"chosen: {names}" if label == "chosen" else "white",
                *(_each([100 * one[name] for one in shown], 1) for name in ("accuracy",)),
                _each([one["error"] for one in shown], 4),
                _each(times, 2),
                _each([100 * one["identified"] for one in shown], 1),
                _each([one["information"] for one in shown], 1),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    evidence, first = result["evidence"], result["rows"][0]
    lines += [
        "",
        f"Mean over the seeds, which stand one by one in brackets; accuracy "
        f"and identification in per cent; {first['lose_at_most']:g} point may be lost. Errors are those of the best "
        "of ridge, nearest neighbours and a trained decoder, on test images that no strength was sought on; "
        f"{evidence['device']}, torch {evidence['torch']}.",
    ]
    return "\n".join(lines)


def _each(values: list[float], digits: int) -> str:
    each = ", ".join(f"{value:.{digits}f}" for value in values)
    return f"{statistics.mean(values):.{digits}f} ({each})"


def scaling(result: dict[str, Any]) -> str:
    lines = ["| operation | over | sizes | seconds | exponent | limit |", "|---|---|---|---|---|---|"]
    for sweep in result["scaling"]:
        sizes = ", ".join(f"{value:,}" for value in sweep["values"])
        seconds = ", ".join(f"{value:.3g}" for value in sweep["seconds"])
        limit = "" if sweep["limit"] is None else f"{sweep['limit']:g}: {'met' if sweep['met'] else 'missed'}"
        lines.append(f"| {sweep['what']} | {sweep['over']} | {sizes} | {seconds} | {sweep['exponent']:.2f} | {limit} |")
    write_text(ROOT / "docs" / "scaling.svg", scaling_figure(result["scaling"]))
    return "\n".join([*lines, "", "![How the cost grows: lines on logarithmic axes](scaling.svg)"])


def roofline(result: dict[str, Any]) -> str:
    lines = ["| what | achieved | ceiling | share |", "|---|---|---|---|"]
    *steps, found = result["roofline"]
    for line in steps:
        achieved, ceiling = (f"{line[name] / 1e9:,.0f} GFLOP/s" for name in ("achieved", "ceiling"))
        lines.append(f"| {line['what']} | {achieved} | {ceiling}, {line['type']} | {line['share']:.0%} |")
    lines += [
        "",
        f"Matrix products reach {found['float32'] / 1e9:,.0f} GFLOP/s in float32 and {found['bfloat16'] / 1e9:,.0f} in "
        f"bfloat16, a copy {found['copy'] / 1e9:.0f} GB/s (read and written), measured in the same run.",
    ]
    return "\n".join(lines)


def reproduced(block: str) -> str:
    """A table or figure at the budget in the block's name (lite if there is none), from the store in results/."""
    name, _, budget = block.rpartition("_")
    name, budget = (name, budget) if budget in ("lite", "day") else (block, "lite")
    shown = present(load_spec(name), load_budget(budget), load_rows(), Store(ROOT / "results" / budget))
    text = shown.markdown()
    if name not in PICTURED:
        return text
    for number, (caption, svg) in enumerate(shown.figures):
        path = ROOT / "docs" / f"{name}-{number}.svg"
        write_text(path, svg)
        title, _, rest = caption.partition("\n")
        text += f"\n\n![{title}]({path.name})\n\n{title[:1].upper()}{title[1:]}. {rest}"
    return text


def metrics() -> str:
    """What a threshold of `sfumato audit` may name."""
    rows = [f"| `{name}` | {text} |" for name, text in METRICS.items()]
    return "\n".join(["| metric | what it is |", "|---|---|", *rows])


def photographs() -> str:
    """The verdict of the leaderboard, in the first sentence, and what it rests on."""
    budget = load_budget("day")
    table = present(load_spec("leaderboard"), budget, load_rows(), Store(ROOT / "results" / budget.name)).tables[0]
    verdict, *_ = table.notes
    work = next(note for note in table.notes if note.startswith("Budget"))
    doubt = next((f" {note}" for note in table.notes if note.startswith("Attacks that had not converged")), "")
    return f"**Photographs of clothes (Fashion-MNIST, 14x14).** {verdict} [Every setting](RESULTS). {work}{doubt}"


PICTURED = ("ablation", "leaderboard")
BLOCKS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "demo": ("demo.json", demo),
    "study": ("digits-study.json", study),
    "bench": ("bench.json", bench),
    "serving": ("bench-serving.json", bench),
    "roofline": ("bench.json", roofline),
    "scaling": ("bench.json", scaling),
    "ranks": ("ranks.json", ranks),
    "tune": ("tune-claim.json", tune),
    "defaults": ("defaults.json", defaults),
    "protect": ("protect.json", protect),
}


def render(text: str, *, home: bool) -> str:
    """The page with every `<!-- begin NAME -->` ... `<!-- end NAME -->` block made anew."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        if name in BLOCKS:
            file, renderer = BLOCKS[name]
            body = renderer(json.loads((ROOT / "results" / file).read_text(encoding="utf-8"))).strip()
        elif name == "metrics":
            body = metrics()
        elif name == "photographs":
            body = photographs().replace("RESULTS", "docs/results.md" if home else "results.md")
        else:
            body = reproduced(name).strip()
        return f"<!-- begin {name} -->\n{body}\n<!-- end {name} -->"

    return re.sub(r"<!-- begin (\w+) -->.*?<!-- end \1 -->", block, text, flags=re.S)


def commands() -> str:
    """The reference of the command line, from the parsers."""
    parts = [
        "# Command line\n\n`sfumato COMMAND [options]`. Exit codes: 0 fine; 1 what the command gates is so; 2 a "
        "mistake in the input; 3 not judged, or failed inside; 130 interrupted. `--help` has the short texts, this "
        "page the whole ones; it is written by `make docs`.\n"
    ]
    for command in COMMANDS:
        parser = parser_of(command)
        parts.append(f"## sfumato {command}\n\n{parser.description}\n\n```\n{parser.example}\n```\n")
        for section in parser.sections:
            rows = [f"| `{head}` | {text} |" for head, text in map(option_row, section.actions)]
            parts.append("\n".join([f"| {section.title} | |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


def option_row(one: Action) -> tuple[str, str]:
    """An option and its text, as cells of a table."""
    return head_of(one).replace("|", "\\|"), f"{one.help}{one.values}".replace("|", "\\|")  # type: ignore[attr-defined]


def main() -> int:
    """Rewrite the pages; with --check only say which are stale, and fail if any is."""
    stale = []
    for name in PAGES:
        path = ROOT / name
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        after = commands() if name == "docs/cli.md" else render(before, home=name == "README.md")
        if before != after:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(after, encoding="utf-8")
    if "--check" in sys.argv and stale:
        sys.stderr.write(f"stale: {', '.join(stale)}; run `make docs`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
