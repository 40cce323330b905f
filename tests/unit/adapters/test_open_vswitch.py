"""The calls that reach Open vSwitch, on a switch that only remembers; the real one is in tests/real."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.adapters.open_vswitch import MAX_ALERTS, OpenVSwitch, SwitchSettings
from natwork_ray.adapters.sdn_rules import cookie
from natwork_ray.adapters.subprocesses import Child, Finished
from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.flow_alerts import FlowAdvice, FlowAlert, SuspectSource
from natwork_ray.errors import ActionError, ConflictError, PreconditionError, RefusedError, StoreError

ALERT = FlowAlert(
    key="d-1/0", container="web", at_s=0.0, kind=AnomalyKind.TRAFFIC_SPIKE, likelihood=0.9,
    sources=(
        SuspectSource(source="203.0.113.0/24", request_share=0.8, failed_share=0.2),
        SuspectSource(source="2001:db8::/32", request_share=0.1, failed_share=0.0),
    ),
    advice=FlowAdvice.DROP, expires_at_s=60.0, destinations=("10.0.0.5", "fd00::5"),
)  # fmt: skip


class Switch:
    """`Runner` of a switch that remembers flows, meters and notes."""

    def __init__(self) -> None:
        self.flows: dict[str, str] = {}  # match -> whole line
        self.meters: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self.calls: list[list[str]] = []
        self.fail: dict[str, Finished] = {}

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        timeout_s: float,
        stdin: bytes = b"",
        quiet: bool = False,
        alone: bool = False,
    ) -> Finished:
        call = list(argv)
        self.calls.append(call)
        words = [w for w in call if not w.startswith("-") and w != "OpenFlow13"]
        verb, rest = words[1], words[2:]
        if verb in self.fail:
            return self.fail[verb]
        return Finished(status=0, text=getattr(self, verb.replace("-", "_"))(*rest, stdin=stdin.decode()) or "")

    def start(self, argv: Sequence[str], *, env: Any, said: Path, pass_fds: tuple[int, ...] = ()) -> Child:
        raise AssertionError("nothing goes on in the background")

    def list(self, *_: str, stdin: str) -> str:
        return json.dumps({"headings": ["external_ids"], "data": [[["map", [[k, v] for k, v in self.notes.items()]]]]})

    def set(self, _table: str, _bridge: str, item: str, *, stdin: str) -> None:
        name, _, text = item.partition("=")
        self.notes[name.removeprefix("external_ids:")] = json.loads(text)

    def remove(self, _table: str, _bridge: str, _column: str, name: str, *, stdin: str) -> None:
        del self.notes[name]

    def add_flows(self, _target: str, *_: str, stdin: str) -> None:
        for line in stdin.splitlines():
            self.flows[line[line.index("priority=") : line.index(",actions=")]] = line

    def del_flows(self, _target: str, match: str, *, stdin: str) -> None:
        wanted = match.partition("/")[0]
        self.flows = {m: line for m, line in self.flows.items() if not line.startswith(wanted)}

    def dump_aggregate(self, _target: str, match: str, *, stdin: str) -> str:
        count = sum(line.startswith(match.partition("/")[0]) for line in self.flows.values())
        return f"NXST_AGGREGATE reply: packet_count=0 byte_count=0 flow_count={count}"

    def add_meter(self, _target: str, text: str, *, stdin: str) -> None:
        self.meters[text.partition(",")[0]] = text

    def del_meter(self, _target: str, name: str, *, stdin: str) -> None:
        self.meters.pop(name, None)


@pytest.fixture
def switch() -> Switch:
    return Switch()


def connect(switch: Switch, now_s: float = 0.0, **settings: Any) -> OpenVSwitch:
    return OpenVSwitch(
        "br0",
        runner=switch,
        now_s=lambda: now_s,
        settings=SwitchSettings(**settings),
        addresses=lambda _: ("10.0.0.9",),
    )


def run(work: Any) -> Any:
    return asyncio.run(work)


def test_rules_carry_cookie_end_and_priority(switch: Switch) -> None:
    outcome = run(connect(switch, database="unix:/db", management="unix:/mgmt").alert(ALERT))
    mark = f"cookie={cookie(ALERT.key):#018x},hard_timeout=60,priority=40002"
    assert sorted(switch.flows.values()) == [
        f"{mark},ip,nw_src=203.0.113.0/24,nw_dst=10.0.0.5,actions=drop",
        f"{mark},ipv6,ipv6_src=2001:db8::/32,ipv6_dst=fd00::5,actions=drop",
    ]
    assert "2 rule(s) on br0: drop for 60 s" in outcome.detail
    assert ["ovs-ofctl", "-O", "OpenFlow13", "--bundle", "add-flows", "unix:/mgmt", "-"] in switch.calls
    assert any("--db=unix:/db" in call for call in switch.calls)


def test_ports_limits_and_mirrors(switch: Switch) -> None:
    one = replace(ALERT, sources=ALERT.sources[:1], destinations=())
    run(connect(switch, next_table=7).alert(replace(one, key="a", advice=FlowAdvice.RATE_LIMIT, ports=(80,))))
    (meter,) = switch.meters
    assert "type=drop,rate=100,burst_size=10" in switch.meters[meter]
    action = f"meter:{meter.partition('=')[2]},goto_table:7"
    assert {line.partition("priority=40001,")[2] for line in switch.flows.values()} == {
        f"tcp,nw_src=203.0.113.0/24,nw_dst=10.0.0.9,tp_dst=80,actions={action}",
        f"udp,nw_src=203.0.113.0/24,nw_dst=10.0.0.9,tp_dst=80,actions={action}",
    }
    run(connect(switch, mirror_port="tap0").alert(replace(one, key="b", advice=FlowAdvice.INSPECT)))
    assert any(line.endswith("actions=output:tap0,NORMAL") for line in switch.flows.values())
    with pytest.raises(PreconditionError, match="no port to copy"):
        run(connect(switch).alert(replace(one, key="c", advice=FlowAdvice.INSPECT)))
    run(connect(switch).withdraw("a"))
    assert switch.meters == {}


def test_the_first_outcome_outlives_us_and_the_rules(switch: Switch) -> None:
    first = run(connect(switch).alert(ALERT))
    switch.flows.clear()  # they have ended
    assert run(connect(switch, now_s=100.0).alert(ALERT)) == first
    assert switch.flows == {}
    with pytest.raises(ConflictError):
        run(connect(switch).alert(replace(ALERT, reason="x")))


def test_what_fails_half_way_leaves_nothing(switch: Switch) -> None:
    limited = replace(ALERT, advice=FlowAdvice.RATE_LIMIT)
    switch.fail["set"] = Finished(status=1, text="ovs-vsctl: database is read-only")
    with pytest.raises(ActionError, match="read-only"):
        run(connect(switch).alert(limited))
    assert (switch.flows, switch.meters, switch.notes) == ({}, {}, {})
    del switch.fail["set"]
    assert run(connect(switch).alert(limited)).done


def test_meters_differ_and_those_of_ended_alerts_go(switch: Switch) -> None:
    for n in range(3):
        run(connect(switch).alert(replace(ALERT, key=f"k-{n}", advice=FlowAdvice.RATE_LIMIT)))
    assert len(switch.meters) == 3
    run(connect(switch, now_s=100.0).alert(replace(ALERT, key="later", expires_at_s=200.0)))
    assert switch.meters == {}


def test_records_are_bounded_and_the_oldest_make_room(switch: Switch) -> None:
    for n in range(MAX_ALERTS):
        run(connect(switch).alert(replace(ALERT, key=f"k-{n}", expires_at_s=60.0 + n)))
    with pytest.raises(RefusedError, match=f"{MAX_ALERTS} alerts are in force"):
        run(connect(switch).alert(replace(ALERT, key="more")))
    run(connect(switch, now_s=61.5).alert(replace(ALERT, key="more", expires_at_s=200.0)))
    assert len(switch.notes) == MAX_ALERTS
    assert f"natwork-{cookie('k-0'):016x}" not in switch.notes


def test_a_switch_that_is_not_there_or_speaks_otherwise(switch: Switch) -> None:
    switch.fail["list"] = Finished(status=1, text='ovs-vsctl: no row "br0" in table Bridge')
    with pytest.raises(PreconditionError, match="finds no bridge br0"):
        run(connect(switch).alert(ALERT))
    for text in ("nonsense", '{"data": []}', '{"data": [[["map", [["natwork-1", "{}"]]]]]}'):
        switch.fail["list"] = Finished(status=0, text=text)
        with pytest.raises(StoreError, match="cannot be read"):
            run(connect(switch).alert(ALERT))
    switch.fail = {"dump-aggregate": Finished(status=0, text="eh?")}
    with pytest.raises(ActionError, match="counts no rules"):
        run(connect(switch).installed("k"))
