"""`SdnController` over Open vSwitch: flow alerts become OpenFlow rules of one bridge.

OpenFlow 1.3 as published by the ONF (flow entries with hard timeouts and cookies; meters), spoken by the switch's own
`ovs-ofctl`; records lie in the bridge's `external_ids`. Rules kept:

- An alert's rules come all or none (one bundle), and end by themselves (hard timeout), even when we are dead by then.
- The cookie comes from the key, so that a repetition overwrites the same rules and a withdrawal takes exactly those.
- The first outcome of a key is kept beside the bridge: whoever asks again, also after a restart of ours, gets it back.
- Argument vectors and standard input only; every call is bounded in time.

Advice: `drop` drops; `rate_limit` sends the sources' packets through one meter per alert; `inspect` copies them to the
mirror port. What is let through goes on at `next_table`, or else in the switch's normal pipeline. A later alert about
the same source, destination and port with the same advice takes the earlier one's rules over, with its own end. Left
out: fragments and encapsulated traffic, which are the fabric's to see, and switches that only a remote controller may
program (see `sdn_rest`).

    switch = OpenVSwitch("br0", runner=SubprocessRunner(), now_s=time.time)
    await switch.alert(alert)
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from natwork_ray.adapters.sdn_rules import FlowRule, cookie, digest, flow_rules, lifetime_s
from natwork_ray.adapters.subprocesses import Runner
from natwork_ray.domain.actions import ActionOutcome
from natwork_ray.domain.flow_alerts import FlowAdvice, FlowAlert
from natwork_ray.domain.values import Backend, decode, encode, value
from natwork_ray.errors import (
    ActionError,
    ConflictError,
    InputError,
    PreconditionError,
    RefusedError,
    StoreError,
)

MAX_ALERTS = 48  # so many records are read in one go; the oldest that are over make room
MAX_METER = 60_000
# The stricter advice wins where two alerts meet; an operator's own rules at 0 to 32767 lie below.
PRIORITIES = {FlowAdvice.DROP: 40_002, FlowAdvice.RATE_LIMIT: 40_001, FlowAdvice.INSPECT: 40_000}
_OFCTL, _VSCTL = "ovs-ofctl", "ovs-vsctl"
_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
_NOTE = "natwork-"
_NO_SWITCH = ("is not a bridge or a socket", "failed to connect", "connection failed", "no bridge", "no row")


@value
class AlertRecord:
    """What is kept of an alert beside the bridge. `meter` 0: it has none."""

    key: str
    digest: str
    expires_at_s: float
    meter: int
    outcome: ActionOutcome


@dataclass(frozen=True)
class SwitchSettings:
    """Where the switch is, and what advice means there.

    Attributes:
        database: OVSDB's address; empty for the machine's own.
        management: address of the bridge's OpenFlow socket; empty for the machine's own.
        rate_packets_per_s: what `rate_limit` lets through per alert.
        mirror_port: name of the port that `inspect` copies to; empty where there is none.
        next_table: where packets that are let through go on; None for the switch's normal pipeline.
        timeout_s: longest time for one call of a program.
    """

    database: str = ""
    management: str = ""
    rate_packets_per_s: int = 100
    mirror_port: str = ""
    next_table: int | None = None
    timeout_s: float = 10.0


class OpenVSwitch:
    """One bridge. `addresses` tells a container's IP addresses where an alert does not."""

    def __init__(
        self,
        bridge: str,
        *,
        runner: Runner,
        now_s: Callable[[], float],
        settings: SwitchSettings | None = None,
        addresses: Callable[[str], Sequence[str]] = lambda _: (),
    ) -> None:
        self._bridge, self._runner, self._now_s = bridge, runner, now_s
        self._settings = settings or SwitchSettings()
        self._addresses = addresses
        self._lock = asyncio.Lock()

    async def alert(self, alert: FlowAlert) -> ActionOutcome:
        """See `SdnController`."""
        async with self._lock:
            records = await self._records()
            known = records.get(_name(alert.key))
            if known is not None:
                if known.digest != digest(alert):
                    raise ConflictError(
                        f"key {alert.key} was used for another alert", hint="a new alert needs a new key"
                    )
                return known.outcome
            began_s = self._now_s()
            rules = flow_rules(alert, now_s=began_s, destinations=self._addresses(alert.container))
            if alert.advice is FlowAdvice.INSPECT and not self._settings.mirror_port:
                raise PreconditionError(
                    f"{self._bridge} has no port to copy suspect packets to", hint="set sdn.mirror_port"
                )
            await self._make_room(records, began_s)
            meter = _free_meter(alert.key, records.values()) if alert.advice is FlowAdvice.RATE_LIMIT else 0
            life_s = lifetime_s(alert, now_s=began_s)
            try:
                if meter:
                    await self._add_meter(meter)
                lines = "".join(_flow(rule, alert, life_s, self._actions(alert.advice, meter)) for rule in rules)
                # Bundles came with OpenFlow 1.4; Open vSwitch has them as an extension of 1.3 as well.
                await self._run([_OFCTL, "-O", "OpenFlow13", "--bundle", "add-flows", self._target(), "-"], lines)
                outcome = ActionOutcome(
                    key=alert.key,
                    done=True,
                    started_at_s=began_s,
                    finished_at_s=self._now_s(),
                    downtime_s=0.0,
                    backend=Backend.REAL,
                    detail=f"{len(rules)} rule(s) on {self._bridge}: {alert.advice} for {life_s} s, "
                    f"cookie {cookie(alert.key):#018x}",
                )
                await self._note(AlertRecord(
                    key=alert.key, digest=digest(alert), expires_at_s=alert.expires_at_s, meter=meter, outcome=outcome
                ))  # fmt: skip
            except (ActionError, PreconditionError, StoreError):
                await self._remove(alert.key, meter)  # none of it stays
                raise
            return outcome

    async def withdraw(self, key: str) -> ActionOutcome:
        """See `SdnController`. The record stays: a late repetition of the alert does not bring the rules back."""
        async with self._lock:
            began_s = self._now_s()
            record = (await self._records()).get(_name(key))
            count = await self.installed(key)
            await self._remove(key, record.meter if record else 0)
            return ActionOutcome(
                key=key,
                done=True,
                started_at_s=began_s,
                finished_at_s=self._now_s(),
                downtime_s=0.0,
                backend=Backend.REAL,
                detail=f"{count} rule(s) of {key} taken from {self._bridge}",
            )

    async def installed(self, key: str) -> int:
        """How many rules of that key the switch has now."""
        argv = [_OFCTL, "-O", "OpenFlow13", "dump-aggregate", self._target(), _cookie_match(key)]
        said = await self._run(argv)
        count = said.rpartition("flow_count=")[2].split()
        if not count or not count[0].isdecimal():
            raise ActionError(f"ovs-ofctl counts no rules: {said[:200]!r}", hint="this needs Open vSwitch 2.5 or newer")
        return int(count[0])

    async def _make_room(self, records: dict[str, AlertRecord], now_s: float) -> None:
        over = sorted((r for r in records.values() if r.expires_at_s <= now_s), key=lambda r: r.expires_at_s)
        for record in over:
            if record.meter:  # its rules ended by themselves; a meter does not
                await self._remove(record.key, record.meter)
                await self._note(replace(record, meter=0))
        surplus = over[: max(0, len(records) - MAX_ALERTS + 1)]
        for record in surplus:
            await self._run([*self._database(), "remove", "bridge", self._bridge, "external_ids", _name(record.key)])
            del records[_name(record.key)]
        if len(records) >= MAX_ALERTS:
            raise RefusedError(
                f"{len(records)} alerts are in force on {self._bridge}", hint="withdraw some, or let them expire"
            )

    def _actions(self, advice: FlowAdvice, meter: int) -> str:
        onward = "NORMAL" if self._settings.next_table is None else f"goto_table:{self._settings.next_table}"
        match advice:
            case FlowAdvice.DROP:
                return "drop"
            case FlowAdvice.RATE_LIMIT:
                return f"meter:{meter},{onward}"
            case FlowAdvice.INSPECT:
                return f"output:{self._settings.mirror_port},{onward}"

    async def _add_meter(self, meter: int) -> None:
        rate = self._settings.rate_packets_per_s
        await self._forget_meter(meter)  # of an attempt that was cut off
        bands = f"meter={meter},pktps,burst,bands=type=drop,rate={rate},burst_size={max(1, rate // 10)}"
        await self._run([_OFCTL, "-O", "OpenFlow13", "add-meter", self._target(), bands])

    async def _forget_meter(self, meter: int) -> None:
        await self._run([_OFCTL, "-O", "OpenFlow13", "del-meter", self._target(), f"meter={meter}"])

    async def _remove(self, key: str, meter: int) -> None:
        await self._run([_OFCTL, "-O", "OpenFlow13", "del-flows", self._target(), _cookie_match(key)])
        if meter:
            await self._forget_meter(meter)

    async def _records(self) -> dict[str, AlertRecord]:
        argv = [*self._database(), "--format=json", "--columns=external_ids", "list", "bridge", self._bridge]
        said = await self._run(argv)
        try:
            kind, pairs = json.loads(said)["data"][0][0]
            notes = {str(name): str(text) for name, text in pairs if kind == "map" and str(name).startswith(_NOTE)}
            return {name: decode(AlertRecord, text) for name, text in notes.items()}
        except (ValueError, LookupError, TypeError, InputError) as error:
            raise StoreError(
                f"the records in {self._bridge}'s external_ids cannot be read: {error}",
                hint=f"remove the entries that begin with {_NOTE}",
            ) from error

    async def _note(self, record: AlertRecord) -> None:
        text = json.dumps(encode(record).decode())
        await self._run([*self._database(), "set", "bridge", self._bridge, f"external_ids:{_name(record.key)}={text}"])

    def _database(self) -> list[str]:
        own = [f"--db={self._settings.database}"] if self._settings.database else []
        # Without waiting for the switch: its rules do not depend on these entries.
        return [_VSCTL, *own, "--no-wait", f"--timeout={max(1, int(self._settings.timeout_s))}"]

    def _target(self) -> str:
        return self._settings.management or self._bridge

    async def _run(self, argv: Sequence[str], stdin: str = "") -> str:
        done = await self._runner.run(argv, env=_ENV, timeout_s=self._settings.timeout_s, stdin=stdin.encode())
        if done.status == 0:
            return done.text
        said = done.text[-300:]
        program = argv[0]
        if any(words in said.lower() for words in _NO_SWITCH):
            raise PreconditionError(
                f"{program} finds no bridge {self._bridge}: {said}",
                hint="is Open vSwitch running, and are sdn.bridge, sdn.database and sdn.management right?",
            )
        raise ActionError(f"{program} ended with {done.status}: {said}", hint="ask the bridge with ovs-ofctl show")


def _flow(rule: FlowRule, alert: FlowAlert, life_s: int, actions: str) -> str:
    six = rule.source.version == 6
    family, prefix = ("ipv6", "ipv6") if six else ("ip", "nw")
    if rule.protocol:
        family = f"{rule.protocol}6" if six else rule.protocol
    match = f"{family},{prefix}_src={rule.source},{prefix}_dst={rule.destination}"
    if rule.port is not None:
        match += f",tp_dst={rule.port}"
    head = f"cookie={cookie(alert.key):#018x},hard_timeout={life_s},priority={PRIORITIES[alert.advice]}"
    return f"{head},{match},actions={actions}\n"


def _free_meter(key: str, records: Iterable[AlertRecord]) -> int:
    taken = {record.meter for record in records}
    meter = cookie(key) % MAX_METER + 1
    while meter in taken:
        meter = meter % MAX_METER + 1
    return meter


def _cookie_match(key: str) -> str:
    return f"cookie={cookie(key):#018x}/-1"


def _name(key: str) -> str:
    return f"{_NOTE}{cookie(key):016x}"
