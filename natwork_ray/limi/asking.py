"""How a task of the plan becomes a step for its side, and which answers to it make sense."""

from __future__ import annotations

from collections.abc import Mapping

from natwork_ray.domain.runtime import Revival
from natwork_ray.limi import plan
from natwork_ray.limi.plan import Task
from natwork_ray.limi.steps import RESTORED, WITHDRAWN, MigrationStarted, Step, StepReport, Verb

_DECIDED: dict[Verb, tuple[str, ...]] = {
    Verb.WITHDRAW: (WITHDRAWN, RESTORED),
    Verb.FORCE_WITHDRAW: (WITHDRAWN, RESTORED),
    Verb.REVIVE: tuple(Revival),
}


def step_for(task: Task, number: int, start: MigrationStarted, done: Mapping[Task, StepReport]) -> Step:
    """The step, with what earlier answers (`done`) say: the container, the page server, the sets of images.

    Sets are named `pre-1`, `pre-2`, ... and `final`; `parent` is the set before, if there is one.
    """
    rounds = len(plan.residuals_of(done))
    images, parent = "", None
    if task.verb in (Verb.PRE_DUMP, Verb.PRE_DUMP_TRANSFER):
        images, before = f"pre-{task.round}", task.round - 1
        parent = f"pre-{before}" if before else None
    elif task.verb in (Verb.DUMP, Verb.DUMP_TRANSFER, Verb.RESTORE):
        images, parent = "final", f"pre-{rounds}" if rounds else None
    return Step(
        key=start.key,
        number=number,
        verb=task.verb,
        container=start.container,
        source=start.source,
        target=start.target,
        method=start.method,
        images=images,
        parent=parent,
        lazy=start.method in plan.LAZY,
        spec=done.get(Task(Verb.CHECK_SOURCE), StepReport()).spec,
        page_server=done.get(Task(Verb.PAGE_TUNNEL), StepReport()).page_server,
        port=done.get(Task(Verb.DUMP), StepReport()).port,
    )


def problem_with(verb: Verb, report: StepReport) -> str:
    """What is wrong with an answer, or nothing. A step with such an answer counts as failed."""
    if verb is Verb.CHECK_SOURCE and report.spec is None:
        return "the answer describes no container"
    if verb is Verb.PAGE_TUNNEL and report.page_server is None:
        return "the answer names no page server"
    allowed = _DECIDED.get(verb)
    if allowed is not None and report.decided not in allowed:
        return f"the answer {report.decided!r} is none of {', '.join(allowed)}"
    return ""
