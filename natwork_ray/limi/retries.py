"""How often a step is asked for, how long apart, and how long its side may take.

Two kinds of steps are asked for until they are answered: those on whose answer it depends where the container runs
(withdraw once a restore was handed out, force withdraw), and the one that lets it run again (revive). All others are
given up after `attempts`. An attempt that failed is repeated only where giving up would leave something behind;
going forward, a failure means going back, and only an attempt that was lost is repeated.

From the restore on only the target can say what is the case, also for going back. Its agent may have died, and be back
in a second, while the container and the daemon that fetches its pages live on. So what was lost there is asked for
again for `PATIENCE_S` at least, however often that is, before the other question, which ends the container, is asked.
"""

from __future__ import annotations

from natwork_ray.domain.values import value
from natwork_ray.limi.steps import Verb

_ATTEMPTS = {Verb.FREEZE: 2, Verb.DUMP: 2, Verb.RESTORE: 2}
_PATIENT = frozenset({Verb.RESTORE, Verb.ADDRESS_MOVE, Verb.PAGES_FETCHED})
PATIENCE_S = 60.0
CLEANING = frozenset({Verb.SETTLE_SOURCE, Verb.SETTLE_TARGET, Verb.CLEAN_SOURCE, Verb.WITHDRAW})
_CLEANING_ATTEMPTS, _OTHER_ATTEMPTS = 8, 3

_FIRST_WAIT_S, _FIRST_CLEANING_WAIT_S, _LONGEST_WAIT_S, _LONGEST_PATIENT_WAIT_S = 0.05, 0.5, 10.0, 1.0


def attempts(verb: Verb) -> int:
    """How often a step is asked for before it counts as failed (cleaning: as left behind)."""
    return _ATTEMPTS.get(verb, _CLEANING_ATTEMPTS if verb in CLEANING else _OTHER_ATTEMPTS)


def patience_s(verb: Verb) -> float:
    """For how long after its first loss a step is asked for again, beyond `attempts`."""
    return PATIENCE_S if verb in _PATIENT else 0.0


def back_off_s(verb: Verb, attempt: int) -> float:
    """Seconds before `attempt` (2 or more): doubling, short where the container stands still, 10 s at most (1 s where
    the answer of an agent that comes back is waited for).
    """
    hurried = verb not in CLEANING or verb is Verb.WITHDRAW
    first = _FIRST_WAIT_S if hurried else _FIRST_CLEANING_WAIT_S
    longest = _LONGEST_PATIENT_WAIT_S if verb in _PATIENT else _LONGEST_WAIT_S
    return float(min(first * 2 ** min(attempt - 2, 16), longest))


@value
class Timeouts:
    """Seconds that an attempt at a step may take before it counts as lost.

    A transfer knows best itself when it stalls; `transfer_s` and `pages_s` only bound what nobody noticed.
    """

    check_s: float = 20.0  # check source, check target
    open_path_s: float = 30.0
    prepare_s: float = 60.0
    pre_dump_s: float = 120.0
    transfer_s: float = 900.0  # images and volume
    freeze_s: float = 15.0
    dump_s: float = 120.0
    address_s: float = 15.0  # address detach and move, page tunnel
    restore_s: float = 120.0
    pages_s: float = 900.0  # lazy pages, both sides
    clean_s: float = 60.0  # settle and clean
    withdraw_s: float = 30.0  # short: it is asked for again until it is answered
    revive_s: float = 180.0

    def of(self, verb: Verb) -> float:
        """The limit of one verb."""
        return float(getattr(self, _FIELD[verb]))


_FIELD = {
    Verb.CHECK_SOURCE: "check_s", Verb.CHECK_TARGET: "check_s", Verb.OPEN_PATH: "open_path_s",
    Verb.PREPARE: "prepare_s", Verb.PRE_DUMP: "pre_dump_s", Verb.PRE_DUMP_TRANSFER: "transfer_s",
    Verb.VOLUME_PRE_TRANSFER: "transfer_s", Verb.FREEZE: "freeze_s", Verb.DUMP: "dump_s",
    Verb.DUMP_TRANSFER: "transfer_s", Verb.VOLUME_TRANSFER: "transfer_s", Verb.ADDRESS_DETACH: "address_s",
    Verb.PAGE_TUNNEL: "address_s", Verb.RESTORE: "restore_s", Verb.ADDRESS_MOVE: "address_s",
    Verb.PAGES_FETCHED: "pages_s", Verb.PAGES_SERVED: "pages_s", Verb.SETTLE_SOURCE: "clean_s",
    Verb.SETTLE_TARGET: "clean_s", Verb.CLEAN_SOURCE: "clean_s", Verb.WITHDRAW: "withdraw_s",
    Verb.FORCE_WITHDRAW: "withdraw_s", Verb.REVIVE: "revive_s",
}  # fmt: skip
