"""Every error says what and what next, ends with its code, and survives the way between processes."""

from __future__ import annotations

import copy
import pickle

import pytest

from natwork_ray import errors
from natwork_ray.errors import ExitCode, NatworkError

KINDS = sorted(
    (k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, NatworkError)), key=lambda k: k.__name__
)

CODES = {
    "ConfigError": ExitCode.USAGE,
    "UsageError": ExitCode.USAGE,
    "PreconditionError": ExitCode.PRECONDITION,
    "VerificationError": ExitCode.VERIFICATION,
    "RefusedError": ExitCode.REFUSED,
    "QuotaError": ExitCode.REFUSED,
    "TimedOutError": ExitCode.TIMED_OUT,
}


@pytest.mark.parametrize("kind", KINDS)
def test_pickling_keeps_class_what_and_hint(kind: type[NatworkError]) -> None:
    error = kind("the disk is full", hint="make room")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301
        assert type(again) is kind
        assert (again.what, again.hint) == ("the disk is full", "make room")
        assert str(again) == "the disk is full (make room)"


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_its_exit_code_and_a_sentence(kind: type[NatworkError]) -> None:
    assert kind.exit_code is CODES.get(kind.__name__, ExitCode.FAILED)
    assert kind.exit_code != ExitCode.DONE
    assert kind.__doc__


def test_a_hint_is_not_optional() -> None:
    with pytest.raises(TypeError):
        NatworkError("what")  # type: ignore[call-arg]


def test_exit_codes_are_the_documented_ones() -> None:
    assert [(c.name, c.value) for c in ExitCode] == [
        ("DONE", 0),
        ("FAILED", 1),
        ("USAGE", 2),
        ("PRECONDITION", 3),
        ("VERIFICATION", 4),
        ("REFUSED", 5),
        ("TIMED_OUT", 6),
    ]
