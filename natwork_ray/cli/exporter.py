"""`natwork exporter`: containers, cgroups and processes of this machine in cAdvisor's names, for Prometheus to scrape.

What reads the kernel is imported by the command: every other command of `natwork` would wait for it.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from natwork_ray.cli.output import JsonOption, talk, write_json
from natwork_ray.cli.settings import settle
from natwork_ray.errors import NotFoundError, PreconditionError, UsageError

if TYPE_CHECKING:
    from natwork_ray.adapters.cadvisor_exporter import Exported

EXAMPLES = (
    "Examples: natwork exporter --pid 4711=web; natwork exporter --cgroup /kubepods/pod1=db --namespace shop; "
    "sudo natwork exporter --testbed --port 9464"
)
PORT = 9464
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_CGROUP_MOUNT = PurePosixPath("/sys/fs/cgroup")


def exporter(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = PORT,
    host: Annotated[str, typer.Option(help="Address to listen on. Whoever reaches it reads everything.")] = "127.0.0.1",
    cgroup: Annotated[
        list[str] | None, typer.Option(metavar="PATH=NAME", help="Export a cgroup as the container NAME.")
    ] = None,
    pid: Annotated[
        list[str] | None, typer.Option(metavar="PID=NAME", help="Export a process with its children as NAME.")
    ] = None,
    testbed: Annotated[bool, typer.Option("--testbed", help="Export every container of the real testbed.")] = False,
    namespace: Annotated[str, typer.Option(help="Label `namespace` of what --cgroup and --pid name.")] = "",
    for_s: Annotated[float | None, typer.Option("--for", min=0.0, help="End after so many seconds.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer Prometheus' scrapes with the resource use of containers, until interrupted."""
    if not (cgroup or pid or testbed):
        raise UsageError("nothing to export", hint="name a --cgroup or --pid, or add --testbed")
    named = tuple(_cgroup(text, namespace) for text in cgroup or ()) + tuple(_process(t, namespace) for t in pid or ())
    doubles = {each.name for each in named if [other.name for other in named].count(each.name) > 1}
    if doubles:
        raise UsageError(f"two things are named {min(doubles)}", hint="give each a name of its own")
    exported, nodes = _testbed(named) if testbed else ((lambda: named), ())
    serve(exported, nodes=nodes, host=host, port=port, for_s=for_s, as_json=as_json)


def serve(
    exported: Callable[[], tuple[Exported, ...]],
    *,
    nodes: tuple[str, ...],
    host: str,
    port: int,
    for_s: float | None,
    as_json: bool,
) -> None:
    """Answer scrapes until interrupted, or for so many seconds."""
    from natwork_ray.adapters.cadvisor_exporter import ContainerExporter, serving

    over = threading.Event()
    before = {number: signal.signal(number, lambda *_: over.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with serving(ContainerExporter(exported, nodes=nodes), host=host, port=port) as (address, taken):
            url = f"http://{f'[{address}]' if ':' in address else address}:{taken}/metrics"
            if as_json:
                write_json({"url": url, "containers": [each.name for each in exported()]})
            else:
                talk.print(f"{url} answers scrapes; Ctrl-C ends it.", soft_wrap=True)
            over.wait(for_s)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _split(text: str, option: str) -> tuple[str, str]:
    place, equals, name = text.rpartition("=")
    if not equals or not place or not _NAME.fullmatch(name):
        raise UsageError(f"{option} {text}: no name", hint=f"write {option} WHAT=NAME, with a plain name")
    return place, name


def _cgroup(text: str, namespace: str) -> Exported:
    from natwork_ray.adapters.cadvisor_exporter import Exported as Made
    from natwork_ray.adapters.cadvisor_exporter import see

    place, name = _split(text, "--cgroup")
    path = PurePosixPath(place)
    if path.is_relative_to(_CGROUP_MOUNT):
        path = PurePosixPath("/") / path.relative_to(_CGROUP_MOUNT)
    if not path.is_absolute() or ".." in path.parts:
        raise UsageError(
            f"--cgroup {place}: no path of a cgroup", hint="such as /kubepods/pod1, as /proc/PID/cgroup has it"
        )
    made = Made(name=name, cgroup=str(path), namespace=namespace)
    if see(made) is None:
        raise NotFoundError(f"there is no cgroup {path}", hint="/proc/PID/cgroup tells that of a process")
    return made


def _process(text: str, namespace: str) -> Exported:
    from natwork_ray.adapters.cadvisor_exporter import Exported as Made
    from natwork_ray.adapters.cadvisor_exporter import see

    place, name = _split(text, "--pid")
    if not place.isascii() or not place.isdigit() or not 0 < int(place) < 2**31:
        raise UsageError(f"--pid {place}: no process id", hint="write --pid 4711=web")
    made = Made(name=name, pid=int(place), namespace=namespace)
    if see(made) is None:
        raise NotFoundError(f"there is no process {place}", hint="has it ended?")
    return made


def _testbed(named: tuple[Exported, ...]) -> tuple[Callable[[], tuple[Exported, ...]], tuple[str, ...]]:
    from natwork_ray.adapters.cadvisor_testbed import exported_of
    from natwork_ray.adapters.testbed import current

    config = settle()
    try:
        record = current(config.state_dir)
    except NotFoundError as error:
        raise PreconditionError(
            f"{error.what}, so there are no containers to export", hint="sudo natwork testbed up makes one"
        ) from error
    return (lambda: (*named, *exported_of(record.nodes))), tuple(node.name for node in record.nodes)
