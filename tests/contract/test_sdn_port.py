"""What every implementation of `SdnController` keeps: the emulation, both REST dialects, and a real Open vSwitch.

A further implementation joins by an entry in `CONTROLLERS`: a function that gives a `Network`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from natwork_ray.adapters.open_vswitch import OpenVSwitch, SwitchSettings
from natwork_ray.adapters.sdn_rest import RestController, RestSettings
from natwork_ray.adapters.subprocesses import SubprocessRunner
from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.flow_alerts import FlowAdvice, FlowAlert, SuspectSource
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.ports import EmulatedSdn
from natwork_ray.emulation.scenarios import smart_city
from natwork_ray.emulation.testbed import Testbed
from natwork_ray.errors import ActionError, ConflictError
from natwork_ray.ports import SdnController


@dataclass(frozen=True)
class Network:
    """One implementation, and how to look behind it: how many rules of a key are in force."""

    sdn: SdnController
    backend: Backend
    now_s: Callable[[], float]
    rules: Callable[[str], int]
    wait: Callable[[], None] = lambda: None


def emulated(_: pytest.FixtureRequest) -> Network:
    testbed = Testbed(smart_city(), seed=13)
    testbed.advance(200)
    return Network(
        sdn=EmulatedSdn(testbed),
        backend=Backend.EMULATED,
        now_s=lambda: testbed.now_s,
        rules=lambda key: sum(b.key == key for b in testbed._operations.blocks),
        wait=lambda: testbed.advance(testbed.now_s + 20),
    )


def rest(dialect: Any) -> Callable[[pytest.FixtureRequest], Network]:
    def made(_: pytest.FixtureRequest) -> Network:
        held: dict[str, int] = {}

        def answer(request: httpx.Request) -> httpx.Response:
            key = request.headers["Idempotency-Key"]
            if request.method == "DELETE":
                return httpx.Response(204 if held.pop(key, 0) else 404)
            document = json.loads(request.content)
            held[key] = len(document["flows"] if dialect == "onos" else document["sources"])
            return httpx.Response(201)

        settings = RestSettings(dialect=dialect, devices=("of:1",) if dialect == "onos" else ())
        controller = RestController(
            "https://sdn.example/api", now_s=time.time, settings=settings, transport=httpx.MockTransport(answer)
        )
        return Network(controller, Backend.REAL, time.time, lambda key: held.get(key, 0))

    return made


def open_vswitch(request: pytest.FixtureRequest) -> Network:
    switch = request.getfixturevalue("open_vswitch")
    settings = SwitchSettings(database=switch.database, management=switch.management)
    controller = OpenVSwitch(switch.bridge, runner=SubprocessRunner(), now_s=time.time, settings=settings)
    return Network(controller, Backend.REAL, time.time, lambda key: asyncio.run(controller.installed(key)))


CONTROLLERS = {
    "emulated": emulated,
    "webhook": rest("webhook"),
    "onos": rest("onos"),
    "open-vswitch": open_vswitch,
}


@pytest.fixture(params=CONTROLLERS)
def network(request: pytest.FixtureRequest) -> Network:
    return CONTROLLERS[request.param](request)


def alert(network: Network, **more: Any) -> FlowAlert:
    suspects = tuple(
        SuspectSource(source=source, request_share=share, failed_share=0.0)
        for source, share in (("203.0.113.0/24", 0.7), ("198.51.100.64/28", 0.1))
    )
    made = FlowAlert(
        key=f"d-{secrets.token_hex(4)}/0", container="auth", at_s=network.now_s(), kind=AnomalyKind.TRAFFIC_SPIKE,
        likelihood=0.9, sources=suspects, advice=FlowAdvice.DROP, expires_at_s=network.now_s() + 600,
        destinations=("10.77.3.20",),
    )  # fmt: skip
    return replace(made, **more)


def test_an_alert_has_its_rules_once(network: Network) -> None:
    told = alert(network)
    outcome = asyncio.run(network.sdn.alert(told))
    assert outcome.key == told.key
    assert outcome.done
    assert outcome.error == ""
    assert outcome.detail
    assert outcome.backend is network.backend
    assert outcome.downtime_s == 0
    assert outcome.finished_at_s >= outcome.started_at_s
    network.wait()
    assert network.rules(told.key) == 2
    assert asyncio.run(network.sdn.alert(told)) == outcome
    network.wait()
    assert network.rules(told.key) == 2


def test_a_withdrawal_takes_the_rules_of_one_key(network: Network) -> None:
    first = alert(network, sources=alert(network).sources[:1])
    second = alert(network, sources=alert(network).sources[1:])
    for told in (first, second):
        asyncio.run(network.sdn.alert(told))
    network.wait()
    outcome = asyncio.run(network.sdn.withdraw(first.key))
    assert outcome.done
    assert outcome.key == first.key
    network.wait()
    assert (network.rules(first.key), network.rules(second.key)) == (0, 1)
    assert asyncio.run(network.sdn.withdraw(first.key)).done
    assert asyncio.run(network.sdn.withdraw("never-heard-of")).done
    assert network.rules(second.key) == 1


def test_a_key_belongs_to_one_alert(network: Network) -> None:
    told = alert(network)
    asyncio.run(network.sdn.alert(told))
    with pytest.raises(ConflictError):
        asyncio.run(network.sdn.alert(replace(told, reason="another")))


def test_an_alert_that_is_over_is_refused(network: Network) -> None:
    told = alert(network, expires_at_s=network.now_s() - 1)
    with pytest.raises(ActionError):
        asyncio.run(network.sdn.alert(told))
    assert network.rules(told.key) == 0
