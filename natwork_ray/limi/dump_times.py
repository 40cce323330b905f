"""How well checkpoints that others measured are foretold: the one phase of which thousands are published.

CubeMig's authors published 17,147 CRIU dumps of real containers: size of the checkpoint, and how long the processes
stood still for it. That is the dump phase of a cold migration, no more: neither transfer nor restore nor totals are
published per migration, so this says nothing of the selector as a whole.

Two forecasts are compared with them: the law of `limi.phase_times`, whose constants were fitted to these very dumps
(so its error is what a straight line leaves, not a test), and a line fitted without the application it is asked about.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from natwork_ray.domain.values import value
from natwork_ray.errors import InputError
from natwork_ray.limi.features import Floats
from natwork_ray.limi.phase_times import MIB, dump_s


@value
class RecordedDump:
    """One checkpoint of a real container. `application` names the recording: service and filling, say redis_100k."""

    application: str
    size_bytes: float
    frozen_s: float

    @property
    def service(self) -> str:
        """The program: redis, mongo, ..."""
        return re.split(r"[-_]", self.application, maxsplit=1)[0]


@value
class DumpReport:
    """Errors of both forecasts of the frozen time, mean absolute percentage."""

    dumps: int
    law_mape_pct: float
    service_out_mape_pct: float
    service_out_mape_by_service_pct: dict[str, float]


def judge_dumps(dumps: Sequence[RecordedDump]) -> DumpReport:
    """Both forecasts, over all dumps.

    Raises:
        InputError: fewer than two services, so that none can be left out.
    """
    services = np.array([dump.service for dump in dumps])
    names = np.unique(services)
    if len(names) < 2:
        raise InputError(f"dumps of {len(names)} services", hint="leaving one out takes two at least")
    mib = np.array([dump.size_bytes / MIB for dump in dumps])
    frozen = np.array([dump.frozen_s for dump in dumps])
    law = np.array([dump_s(dump.size_bytes) for dump in dumps])
    line = np.empty_like(frozen)
    for name in names:
        own = services == name
        slope, fixed = np.polyfit(mib[~own], frozen[~own], 1)
        line[own] = fixed + slope * mib[own]
    return DumpReport(
        dumps=len(dumps),
        law_mape_pct=_mape(law, frozen),
        service_out_mape_pct=_mape(line, frozen),
        service_out_mape_by_service_pct={
            str(name): _mape(line[services == name], frozen[services == name]) for name in names
        },
    )


def _mape(predicted: Floats, actual: Floats) -> float:
    return float(100 * np.mean(np.abs(predicted - actual) / actual))
