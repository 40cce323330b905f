"""One error root; every error says what happened and what to do next.

Exit codes are part of the command line's contract (docs/cli.md): each error class carries the one that the
command line ends with when the error reaches it.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a `natwork` command ended."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    PRECONDITION = 3
    VERIFICATION = 4
    REFUSED = 5
    TIMED_OUT = 6


class NatworkError(Exception):
    """Root of all errors raised on purpose.

    `what` is one sentence with the place and the value at fault; `hint` says how to mend it.
    """

    exit_code: ExitCode = ExitCode.FAILED

    def __init__(self, what: str, *, hint: str) -> None:
        super().__init__(what, hint)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what} ({self.hint})"

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process boundaries inside a cluster; the default would lose the keyword-only hint.
        return (_rebuild, (type(self), self.what, self.hint))


def _rebuild(kind: type[NatworkError], what: str, hint: str) -> NatworkError:
    return kind(what, hint=hint)


class UsageError(NatworkError):
    """A command line, request or call that makes no sense as given."""

    exit_code = ExitCode.USAGE


class ConfigError(UsageError):
    """An unknown key or a value out of range in the configuration."""


class PreconditionError(NatworkError):
    """Something that has to be there is missing: a package, a file, a running system."""

    exit_code = ExitCode.PRECONDITION


class InputError(NatworkError):
    """Data from outside (file, request, peer) that breaks its format or its bounds."""


class VerificationError(NatworkError):
    """A proof, signature, digest or log that does not verify."""

    exit_code = ExitCode.VERIFICATION


class RefusedError(NatworkError):
    """Refused by policy: quota, mode, approval or capacity does not allow it."""

    exit_code = ExitCode.REFUSED


class QuotaError(RefusedError):
    """The downtime budget of a CNF does not cover what was asked for."""


class NotFoundError(NatworkError):
    """No node, container, decision or entry with that name."""


class ConflictError(NatworkError):
    """The thing exists, but its state does not allow what was asked for."""


class ActionError(NatworkError):
    """An action on the network failed; the world is as the message says."""


class TimedOutError(NatworkError):
    """No answer within the time that was allowed."""

    exit_code = ExitCode.TIMED_OUT


class StoreError(NatworkError):
    """The durable store could not be read or written."""
