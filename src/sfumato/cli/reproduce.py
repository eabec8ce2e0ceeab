"""`sfumato reproduce`: the paper's tables and figures, ours beside the published numbers."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from sfumato import defenses
from sfumato.cli.console import Bar, progress_bar, say
from sfumato.cli.parser import Parsed, load_plugins, save_json
from sfumato.compute import device_of
from sfumato.errors import ConfigError, SfumatoError
from sfumato.studies import Store, Summary, Trial, build_executor, run_trials
from sfumato.studies.efficiency import TimingTrial
from sfumato.studies.experiment import located
from sfumato.studies.plan import Budget, RowSpec, experiments_of, load_budget, load_rows, load_spec, paper_names
from sfumato.studies.presentation import present, save


def run(parsed: Parsed) -> None:
    """Run what is missing, show."""
    budget = load_budget(parsed.budget, as_published=parsed.as_published, as_printed=parsed.as_printed)
    rows, folder = load_rows(), Path(parsed.work)
    added = _own_rows(parsed, rows)
    names = paper_names() if "all" in parsed.names else parsed.names
    specs = [load_spec(name) | {"added": added} for name in names]
    store = Store(Path(parsed.results) / budget.name, locks=folder / "locks")
    summary = None if parsed.show else _run(parsed, specs, budget, rows, store)
    tables: list[dict[str, Any]] = []
    for spec in specs:
        shown = present(spec, budget, rows, store)
        if paths := save(shown, folder / "tables", budget):
            say(shown.markdown())
            say(f"Written: {', '.join(map(str, paths))}\n")
        else:
            say(f"{shown.title}: nothing has been measured at budget {budget.name} yet.")
        tables.append({"name": shown.name, "title": shown.title, "tables": [asdict(table) for table in shown.tables]})
    if summary is not None:
        say(_told(summary))
    save_json(parsed.json, {"tables": tables, "summary": None if summary is None else asdict(summary)})
    if summary is not None and summary.failed:
        key, sentence = summary.failed[0]
        raise SfumatoError(f"{len(summary.failed)} experiments failed; the first, {key}: {sentence}")


def _own_rows(parsed: Any, rows: dict[str, RowSpec]) -> list[str]:
    """A row for every defence that a plugin registers."""
    load_plugins(parsed)
    added = [name for name in defenses.names() if parsed.plugin and defenses.version(name) is not None]
    for name in added:
        if name in rows:
            raise ConfigError(f"the tables have a row {name!r} already; give your defence another name")
        rows[name] = RowSpec(name, name, {"defense": name})
    return added


def _run(
    parsed: Any, specs: Sequence[dict[str, Any]], budget: Budget, rows: dict[str, RowSpec], store: Store
) -> Summary:
    found = [
        one for spec in specs for one in experiments_of(spec, budget, rows, wanted=parsed.rows, seeds=parsed.seeds)
    ]
    experiments = list({one.key: one for one in found}.values())
    trials: list[Trial] = [TimingTrial(budget, parsed.device) for spec in specs if spec["kind"] == "efficiency"]
    data_dir = None if budget.stand_in else parsed.data_dir
    trials += located(experiments, store, data_dir=data_dir, device=parsed.device, keep=parsed.keep)
    options = dict(parsed.executor_options or {})
    if parsed.executor == "local":
        on_gpu = device_of(parsed.device).type == "cuda"  # whose memory each process would take a part of
        options |= {"workers": parsed.workers or (1 if on_gpu else None)}
    elif parsed.executor == "slurm":
        options.setdefault("folder", str(Path(parsed.work) / "slurm"))
    deadline = None if parsed.minutes is None else time.time() + 60 * parsed.minutes
    with build_executor(parsed.executor, **options) as executor, progress_bar("experiments") as bar:
        return run_trials(
            trials,
            executor,
            store,
            Path(parsed.work),
            deadline=deadline,
            plugins=parsed.plugin or [],
            keep_going=True,
            report=partial(_tell, bar),
        )


def _tell(bar: Bar, done: float, total: int, result: dict[str, Any] | None) -> None:
    bar.at(done, total)
    if result is not None:
        line = result.get("error", "done")
        if "attacks" in result:
            errors = ", ".join(f"{name} {attack['test']['mse']:.4f}" for name, attack in result["attacks"].items())
            line = f"accuracy {result['accuracy']:.2%}, test MSE {errors}"
        bar.line(f"{done:.0f}/{total}  {result['key']}: {line}")


def _told(summary: Summary) -> str:
    text = f"{summary.done} of {summary.total} experiments are done ({summary.seconds:.0f} s)."
    if summary.elsewhere:
        text += f" {summary.elsewhere} are being done by another process."
    if summary.done + summary.elsewhere + len(summary.failed) < summary.total:
        text += " The same command resumes the rest."
    return text
