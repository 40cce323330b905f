"""`natwork doctor`: what this machine has, what is missing, and how to get it.

Two parts. The first is what every run needs. The second is what real live migration needs of the machine (D3.3 section
2.1; docs/testbed.md): the emulated and the replayed backend do without it, so it only counts with --testbed.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from natwork_ray.adapters.testbed_requirements import Requirement, abilities, requirements
from natwork_ray.backends import load_detector
from natwork_ray.cli.lifecycle import require_free_port
from natwork_ray.cli.output import Format, FormatOption, JsonOption, chosen, printable, talk, write_json, write_rows
from natwork_ray.cli.settings import settle
from natwork_ray.config import Config
from natwork_ray.errors import ExitCode, NatworkError

EXAMPLES = """Examples:

natwork doctor

sudo .venv/bin/natwork doctor --testbed     (exit 3 unless all four methods of real migration work here)
"""

_COLUMNS = ("check", "state", "found", "hint")


def doctor(
    testbed: Annotated[
        bool, typer.Option("--testbed", help="Count what real live migration needs as needed (exit 3 without it).")
    ] = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """What this machine has, what is missing, and how to get it. Exit 3 when something needed is missing."""
    output = chosen(output, as_json)
    config = settle()
    rows = [_examined(check, config) for check in _CHECKS]
    found = requirements()
    real = [_row(requirement, needed=testbed) for requirement in found]
    able = abilities(found)
    if output is Format.JSON:
        migration = {
            "available": bool(able.methods),
            "methods": [str(method) for method in able.methods],
            "dirty_tracking": able.dirty_tracking,
            "reasons": {str(method): why for method, why in able.reasons},
            "checks": real,
        }
        write_json({"checks": rows, "real_migration": migration})
    elif output is Format.CSV:
        parts = [{**row, "part": "every run", "needed_for": ""} for row in rows]
        parts += [{**row, "part": "real migration"} for row in real]
        write_rows(parts, (*_COLUMNS, "part", "needed_for"), output, title="checks")
    else:
        write_rows(rows, _COLUMNS, output, title="checks")
        write_rows(real, _COLUMNS, output, title="real live migration")
        talk.print(printable(_verdict(found)), soft_wrap=True)
    if any(row["state"] == "missing" for row in (*rows, *real)):
        raise typer.Exit(ExitCode.PRECONDITION)


def _row(requirement: Requirement, *, needed: bool) -> dict[str, Any]:
    lacking = "missing" if needed and requirement.needed_for else "absent"
    return {
        "check": requirement.name,
        "state": "ok" if requirement.found else lacking,
        "found": requirement.detail,
        "hint": requirement.hint,
        "needed_for": requirement.purpose,
    }


def _verdict(found: Sequence[Requirement]) -> str:
    able = abilities(found)
    if not able.reasons:
        return f"real migration: {', '.join(able.methods)}"
    # The reasons follow the order of the methods, so the first one stands in the way of most.
    why = able.reasons[0][1]
    if not able.methods:
        return f"real migration: not available, because {why}"
    lost = ", ".join(method for method, _ in able.reasons)
    return f"real migration: {', '.join(able.methods)}; not {lost}, because {why}"


Check = tuple[str, bool, Callable[[Config], str], str]


def _examined(check: Check, config: Config) -> dict[str, Any]:
    name, needed, look, hint = check
    try:
        return {"check": name, "state": "ok", "found": look(config), "hint": ""}
    except (OSError, ImportError, NatworkError, importlib.metadata.PackageNotFoundError) as error:
        return {"check": name, "state": "missing" if needed else "absent", "found": str(error), "hint": hint}


def _python(_: Config) -> str:
    if sys.version_info < (3, 11):  # noqa: UP036 - said to whoever runs it by other means than pip
        raise OSError(f"Python {platform.python_version()}")
    return platform.python_version()


def _package(name: str) -> Callable[[Config], str]:
    return lambda _: importlib.metadata.version(name)


def _memory(_: Config) -> str:
    import psutil

    available = psutil.virtual_memory().available
    if available < 2 * 2**30:
        raise OSError(f"{available / 2**30:.1f} GiB available")
    return f"{available / 2**30:.1f} GiB available, {os.cpu_count()} cores"


def _shared_memory(_: Config) -> str:
    free = shutil.disk_usage("/dev/shm").free  # noqa: S108 - Ray's object store lies there
    if free < 256 * 2**20:
        raise OSError(f"{free / 2**20:.0f} MiB free in /dev/shm")
    return f"{free / 2**20:.0f} MiB free in /dev/shm"


def _port(config: Config) -> str:
    require_free_port(config)
    return f"{config.http.host}:{config.http.port} is free"


def _model(config: Config) -> str:
    card = load_detector(config).card
    return f"{config.model or 'the shipped one'}, trained on {card.runs} {card.trained_on} runs"


def _data(config: Config) -> str:
    if config.data_dir is None or not config.data_dir.is_dir():
        raise OSError("no folder of public data sets")
    return str(config.data_dir)


_CHECKS: tuple[Check, ...] = (
    ("python", True, _python, "install Python 3.11 or newer"),
    ("ray", True, _package("ray"), "pip install -c constraints.txt -e ."),
    ("torch", True, _package("torch"), "pip install -c constraints.txt -e ."),
    ("memory", True, _memory, "about 2 GiB are needed"),
    ("shared memory", False, _shared_memory, "Ray falls back to /tmp, which is slower"),
    ("http port", False, _port, "the system may be running; else --set http.port=ANOTHER"),
    ("profiler model", True, _model, "natwork train profiler, then --set model=FILE"),
    ("plots", False, _package("plotly"), "pip install -c constraints.txt -e '.[plots]' for the HTML report"),
    ("public data", False, _data, "docs/data.md says where it is published; then set NATWORK_DATA_DIR"),
)
