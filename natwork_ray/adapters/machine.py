"""The machine as its adapters ask it: programs, small files of /proc, the user, the kernel. One value, replaceable.

Whoever looks at the machine takes a `Machine`; a test hands over another one, in which CRIU is old or root is missing.
Programs are started by argument vector, without a shell or standard input, with a time limit, a plain environment and a
bound on what is read of them.

    >>> Machine().run(["true"]).status
    0
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from natwork_ray.domain.values import value

MAX_OUTPUT_BYTES = 65_536
TIMEOUT_S = 20.0
NOT_STARTED, TIMED_OUT = 127, 124  # as a shell and timeout(1) say it
# Where daemons' programs lie; an ordinary user's PATH leaves these out.
_SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_FOLDERS}"


@value
class Answer:
    """What a program said: exit status (127 when it could not be started, 124 when it took too long) and text."""

    status: int
    text: str


def run_bounded(argv: Sequence[str], timeout_s: float = TIMEOUT_S) -> Answer:
    """Start a program without a shell and wait for it; standard output and error together, the first 64 KiB of them."""
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
                env={"PATH": _path(), "LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired:
            return Answer(status=TIMED_OUT, text=f"no answer within {timeout_s:g} s")
        except OSError as error:
            return Answer(status=NOT_STARTED, text=f"cannot be started: {error.strerror}")
        output.seek(0)
        text = output.read(MAX_OUTPUT_BYTES).decode("utf-8", errors="replace")
    return Answer(status=done.returncode, text=text.strip())


def _which(name: str) -> Path | None:
    found = shutil.which(name, path=_path())
    return None if found is None else Path(found).absolute()


def _read(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_OUTPUT_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return ""  # a file of /proc that is not there says that the feature is not there


@dataclass(frozen=True)
class Machine:
    """All that is asked of the machine, so that tests can put another one in its place.

    Attributes:
        run: start a program, given as an argument vector.
        which: absolute path of a program, None when there is none.
        is_file: whether there is a program at a path.
        read: text of a small file, empty when it cannot be read.
        writable: whether a setting below /proc/sys can be changed.
        uid: effective user id.
        release: release of the running kernel.
        environ: environment variables.
    """

    run: Callable[[Sequence[str]], Answer] = run_bounded
    which: Callable[[str], Path | None] = _which
    is_file: Callable[[Path], bool] = Path.is_file
    read: Callable[[Path], str] = _read
    writable: Callable[[Path], bool] = lambda path: os.access(path, os.W_OK)
    uid: Callable[[], int] = os.geteuid
    release: Callable[[], str] = lambda: os.uname().release
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
