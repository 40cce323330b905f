"""`natwork causes`: which service is the cause, ranked, and how well that works on incidents with known causes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from natwork_ray.adapters.sqlite_journal import SqliteJournal
from natwork_ray.cli.causes_cases import emulated_cases, recorded_cases
from natwork_ray.cli.output import Format, FormatOption, JsonOption, chosen, progress_bar, talk, write_json, write_rows
from natwork_ray.cli.settings import settle
from natwork_ray.control.events import RunStarted, TopologyObserved, VerdictsReached
from natwork_ray.control.service import StoredEvent
from natwork_ray.dependencies.evaluation import evaluate
from natwork_ray.dependencies.graph import from_topology
from natwork_ray.dependencies.ranking import rank
from natwork_ray.dependencies.verdicts import from_verdicts
from natwork_ray.domain.anomaly import AnomalyVerdict
from natwork_ray.domain.topology import Topology
from natwork_ray.domain.values import decode, plain
from natwork_ray.errors import NotFoundError, PreconditionError

app = typer.Typer(no_args_is_help=True, help="Which service is the cause, ranked (docs/dependencies.md).")

EVALUATE_EXAMPLES = """Examples:

natwork causes evaluate --data DIR --json   (DIR holds nezha/ and rcd_sockshop_1s.csv.gz, or one of them)

natwork causes evaluate --emulated
"""
RANK_EXAMPLES = """Examples:

natwork causes rank --minutes 15

natwork causes rank --at 4210 --json
"""


@app.command("rank", epilog=RANK_EXAMPLES)
def rank_command(
    at_s: Annotated[
        float | None, typer.Option("--at", help="End of the incident, seconds on the backend's clock (default: now).")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.1, max=1440, help="How far back the incident reaches.")] = 10.0,
    most: Annotated[int, typer.Option("--top", min=1, help="Containers shown.")] = 5,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Rank the containers of the last minutes by how likely they are the cause, from the verdicts in the journal."""
    verdicts, topology, newest_s = _journal(settle().state_dir)
    end_s = newest_s if at_s is None else at_s
    start_s = end_s - 60 * minutes
    graph = from_topology(topology)
    evidence = from_verdicts(verdicts, graph.containers, start_s=start_s, end_s=end_s)
    ranking = rank(evidence, graph, length_s=end_s - start_s)
    rows = [plain(c) for c in ranking.causes[:most] if c.score > 0]
    output = chosen(output, as_json)
    if output is Format.JSON:
        write_json({"from_s": start_s, "to_s": end_s, "causes": rows})
        return
    if not rows:
        talk.print(f"No verdict between {start_s:.0f} and {end_s:.0f} s: nothing to rank.")
    columns = ("container", "score", "size", "metric", "deviation", "onset_s", "explained_by")
    write_rows(rows, columns, output, title="causes")


def _journal(state_dir: Path) -> tuple[list[AnomalyVerdict], Topology, float]:
    """All verdicts of the newest run, its newest topology, and the time of its newest event."""
    verdicts: list[AnomalyVerdict] = []
    topology: Topology | None = None
    newest_s = 0.0
    journal = SqliteJournal.open_read_only(state_dir)
    try:
        for _, body in journal.events():
            stored: StoredEvent = decode(StoredEvent, body)
            event = stored.event
            newest_s = max(newest_s, event.at_s)
            match event:
                case RunStarted():
                    verdicts, topology, newest_s = [], event.topology, event.at_s
                case TopologyObserved():
                    topology = event.topology
                case VerdictsReached():
                    verdicts += event.verdicts
                case _:
                    pass
    finally:
        journal.close()
    if topology is None:
        raise NotFoundError("the journal holds no run", hint="`natwork demo` or `natwork up` makes one")
    return verdicts, topology, newest_s


@app.command("evaluate", epilog=EVALUATE_EXAMPLES)
def evaluate_command(
    data: Annotated[
        Path | None, typer.Option(help="Folder with nezha/ and rcd_sockshop_1s.csv.gz (default: data_dir).")
    ] = None,
    emulated: Annotated[bool, typer.Option("--emulated", help="On the emulation only; needs no data.")] = False,
    worlds: Annotated[int, typer.Option(min=2, max=200, help="Emulated worlds of 16 services.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the emulation and of the bootstrap.")] = 7,
    kinds: Annotated[
        bool, typer.Option("--kinds", help="Also a row for each kind of fault (JSON always has them).")
    ] = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Top-1, top-3 and Avg@5 on incidents with known causes, baselines in the same run, tuned on other days."""
    output = chosen(output, as_json)
    folder = None if emulated else (data or settle().data_dir)
    if folder is None and not emulated:
        raise PreconditionError("no data", hint="name the folder with --data, set NATWORK_DATA_DIR, or add --emulated")
    with progress_bar(quiet=output is Format.JSON) as bar:
        task = bar.add_task("reading", total=None)

        def step(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        cases = [*(recorded_cases(folder) if folder else ()), *emulated_cases(seed=seed, worlds=worlds)]
        table = evaluate(cases, seed=seed, progress=step)
    if output is Format.JSON:
        write_json({**plain(table), "seed": seed})
        return
    shown = [row for row in table.rows if kinds or row.kind == "all"]
    columns = ("data", *(["kind"] if kinds else []), "model", "cases", "top_1", "top_3", "avg_5", "avg_5_ci")
    write_rows([plain(row) for row in sorted(shown, key=lambda r: (r.data, r.kind))], columns, output, title="causes")
    talk.print(f"tuned on {table.tuned_on} other incidents: {plain(table.chosen)}")
