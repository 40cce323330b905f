"""A Locust user that measures downtime as clients see it, queueing included; and the process that runs it.

    python -m natwork_ray.adapters.locust_user http://10.77.3.50:8080 --users 20 --every 0.1 --limit 60

or, with Locust's own interface, `locust -f natwork_ray/adapters/locust_user.py`. Importing this module imports Locust,
which replaces the standard library's sockets by gevent's: nothing else in the library imports it
(`natwork_ray.adapters.traffic` starts it as a process).

Each user has one session and asks at fixed times. Locust counts a response from the moment at which it was sent; a user
that stood in line behind a frozen server would then report one slow request and not the ones that it could not send.
So every request is also reported from the time at which it was due (`due` in Locust's statistics).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from typing import Any, ClassVar

import gevent  # type: ignore[import-untyped]
from locust import HttpUser, constant, events, task
from locust.env import Environment

from natwork_ray.adapters.traffic import READY, TrafficReport
from natwork_ray.domain.values import encode

_FIRST_S = 20.0


class Ledger:
    """What all users of this process saw."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.failures = 0
        self.instances: set[str] = set()
        self.first_s: float | None = None
        self.last_s = 0.0
        self.longest_gap_s = 0.0

    def answered(self, due_s: float, now_s: float, instance: str) -> None:
        """A good answer."""
        self.latencies.append(now_s - due_s)
        self.instances.add(instance)
        if self.first_s is None:
            self.first_s = now_s
        else:
            self.longest_gap_s = max(self.longest_gap_s, now_s - self.last_s)
        self.last_s = now_s

    def report(self, users: int) -> TrafficReport:
        """All of it."""
        ordered = sorted(self.latencies) or [0.0]
        return TrafficReport(
            users=users,
            requests=len(self.latencies) + self.failures,
            failures=self.failures,
            duration_s=self.last_s - self.first_s if self.first_s is not None else 0.0,
            longest_gap_s=self.longest_gap_s,
            latency_p50_s=ordered[len(ordered) // 2],
            latency_p95_s=ordered[min(len(ordered) * 95 // 100, len(ordered) - 1)],
            latency_max_s=ordered[-1],
            instances=len(self.instances),
        )


class ServiceUser(HttpUser):
    """Asks the workload at fixed times over one session."""

    wait_time = constant(0)
    every_s: ClassVar[float] = 0.1
    ledger: ClassVar[Ledger] = Ledger()

    def on_start(self) -> None:
        """The first request is due now."""
        self.due_s = time.monotonic()

    @task
    def ask(self) -> None:
        """One request, at its time or as soon as the one before is done."""
        gevent.sleep(max(self.due_s - time.monotonic(), 0.0))
        due_s, self.due_s = self.due_s, self.due_s + self.every_s
        problem: Exception | None = None
        with self.client.get("/", catch_response=True, timeout=30.0) as response:
            try:
                instance = str(json.loads(response.content)["instance"])
                self.ledger.answered(due_s, time.monotonic(), instance)
                response.success()
            except (ValueError, KeyError, TypeError) as error:
                problem = error
                self.ledger.failures += 1
                response.failure(f"no answer of a workload: {response.error or error}")
        waited_ms = 1000 * (time.monotonic() - due_s)
        events_of = self.environment.events
        events_of.request.fire(
            request_type="due", name="/", response_time=waited_ms, response_length=0, exception=problem, context={}
        )


def main(arguments: list[str]) -> None:
    """Run users until standard input ends or the limit is reached; then write a TrafficReport to standard output."""
    parser = argparse.ArgumentParser(description="Locust users of one container")
    parser.add_argument("host")
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--every", type=float, required=True)
    parser.add_argument("--limit", type=float, required=True)
    told = parser.parse_args(arguments)
    ServiceUser.every_s, ServiceUser.ledger = told.every, Ledger()
    environment: Any = Environment(user_classes=[ServiceUser], events=events, host=told.host)
    runner = environment.create_local_runner()
    runner.start(told.users, spawn_rate=told.users)
    with contextlib.suppress(gevent.Timeout), gevent.Timeout(_FIRST_S):
        while len(ServiceUser.ledger.latencies) < told.users:
            gevent.sleep(0.02)
        sys.stdout.buffer.write(READY)
        sys.stdout.buffer.flush()
        ServiceUser.ledger.latencies.clear()  # connecting is not what is measured
        # Reading would stop all users: another thread waits for the end of standard input.
        ended = gevent.get_hub().threadpool.spawn(sys.stdin.buffer.read)
        gevent.wait([ended], timeout=told.limit)
    runner.quit()
    sys.stdout.buffer.write(encode(ServiceUser.ledger.report(told.users)) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
