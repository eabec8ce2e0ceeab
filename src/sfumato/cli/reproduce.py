"""`sfumato reproduce`: the paper's tables and figures, ours beside the published numbers."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato import defenses
from sfumato.cli.console import Bar, progress_bar, say
from sfumato.cli.parser import Parsed, load_plugins, save_json
from sfumato.compute import device_of
from sfumato.errors import ConfigError, SfumatoError
from sfumato.studies import Store, Summary, Trial, build_executor, run_trials
from sfumato.studies.efficiency import TimingTrial
from sfumato.studies.experiment import Experiment, located
from sfumato.studies.plan import Budget, RowSpec, experiments_of, load_budget, load_rows, load_spec, paper_names
from sfumato.studies.presentation import Presentation, present, save


def run(parsed: Parsed) -> None:
    """Run what is missing, show."""
    budget = load_budget(parsed.budget, as_published=parsed.as_published, as_printed=parsed.as_printed)
    rows = load_rows()
    added = _own_rows(parsed, rows)
    names = paper_names() if "all" in parsed.names else parsed.names
    specs = [load_spec(name) | {"added": added} for name in names]
    store = Store(Path(parsed.results) / budget.name, locks=Path(parsed.work) / "locks")
    summary = None if parsed.show else _run(parsed, specs, budget, rows, store)
    shown = [present(spec, budget, rows, store) for spec in specs]
    for one in shown:
        _show(one, Path(parsed.work) / "tables", budget)
    if summary is not None:
        _tell(summary)
    save_json(parsed.json, _as_data(shown, summary))
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
    experiments: dict[str, Experiment] = {}
    trials: list[Trial] = []
    for spec in specs:
        if spec["kind"] == "efficiency":
            trials.append(TimingTrial(budget, parsed.device))
        else:
            for one in experiments_of(spec, budget, rows, wanted=parsed.rows, seeds=parsed.seeds):
                experiments.setdefault(one.key, one)
    data_dir = None if budget.stand_in else parsed.data_dir
    trials += located(list(experiments.values()), store, data_dir=data_dir, device=parsed.device, keep=parsed.keep)
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
            report=_reporter(bar),
        )


def _reporter(bar: Bar) -> Any:
    def report(done: float, total: int, result: dict[str, Any] | None) -> None:
        bar.at(done, total)
        if result is not None:
            line = "done"
            if "error" in result:
                line = result["error"]
            elif "attacks" in result:
                errors = ", ".join(f"{name} {attack['test']['mse']:.4f}" for name, attack in result["attacks"].items())
                line = f"accuracy {result['accuracy']:.2%}, test MSE {errors}"
            bar.line(f"{done:.0f}/{total}  {result['key']}: {line}")

    return report


def _show(shown: Presentation, folder: Path, budget: Budget) -> None:
    paths = save(shown, folder, budget)
    if not paths:
        say(f"{shown.title}: nothing has been measured at budget {budget.name} yet.")
        return
    say(shown.markdown())
    say(f"Written: {', '.join(str(path) for path in paths)}\n")


def _tell(summary: Summary) -> None:
    text = f"{summary.done} of {summary.total} experiments are done ({summary.seconds:.0f} s)."
    if summary.elsewhere:
        text += f" {summary.elsewhere} are being done by another process."
    if summary.done + summary.elsewhere + len(summary.failed) < summary.total:
        text += " The same command resumes the rest."
    say(text)


def _as_data(shown: Sequence[Presentation], summary: Summary | None) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "tables": [
            {"name": one.name, "title": one.title, "tables": [asdict(table) for table in one.tables]} for one in shown
        ],
        "summary": None if summary is None else asdict(summary),
    }
