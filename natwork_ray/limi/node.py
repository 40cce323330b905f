"""What a LiMi agent does on its node: steps of migrations, as client on the source and as server on the target.

Rules kept:

- A step is idempotent by (key, number): while it is under way a repetition joins it, and once it is done a repetition
  gets the first answer. One that failed is tried again at a higher attempt. Answers are kept in memory, for the
  newest `REMEMBERED` steps; after a crash the register and the ports (whose verbs may all be repeated) take over.
- Steps go on when their caller goes away. What ends them is the step that replaces them: revive, withdraw, force
  withdraw, settle and clean cancel every older step of the same key and side here and wait for its end; afterwards
  older ones are refused.
- A container is not ended on a guess. Told to force a withdrawal, the target asks its runtime first whether all memory
  has arrived in spite of everything: the daemon that fetches it outlives an agent that was killed.
- The target's word is durable before it is given (`natwork_ray.limi.register`): "restored" is noted after the
  container runs, "withdrawn" before anything is ended. A container that runs and could not be noted is ended again.

One container takes part in one migration at a time: whoever begins migrations sees to that. The node does not check
room for a container on the target, since no port tells of it: a restore that does not fit fails and is rolled back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable
from dataclasses import dataclass, field

from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.runtime import ContainerSpec, ContainerState, RuntimeAbilities
from natwork_ray.errors import ActionError, ConflictError, NatworkError, PreconditionError, TimedOutError, UsageError
from natwork_ray.limi.register import Register, Standing
from natwork_ray.limi.steps import RESTORED, SIDE_OF, WITHDRAWN, Side, Step, StepReport, Verb
from natwork_ray.ports import AddressBridge, Clock, ContainerRuntime, ImageTransfer, MigrationJournal

logger = logging.getLogger(__name__)

REMEMBERED = 4096  # steps whose answers are kept; a migration has about 20
LAST_PAGES_S = 10.0  # that a forced withdrawal gives to pages which are still arriving

_FENCES = frozenset(
    {Verb.REVIVE, Verb.CLEAN_SOURCE, Verb.SETTLE_SOURCE, Verb.WITHDRAW, Verb.FORCE_WITHDRAW, Verb.SETTLE_TARGET}
)


@dataclass
class _Work:
    attempt: int
    task: asyncio.Task[StepReport]


@dataclass
class LimiNode:
    """One node's side of every migration that it takes part in.

    Performs steps whose side is this node. Lives in one event loop; state that has to survive is in `journal`.
    """

    name: str
    runtime: ContainerRuntime
    transfer: ImageTransfer
    bridge: AddressBridge
    journal: MigrationJournal
    clock: Clock
    _work: OrderedDict[tuple[str, Verb, int], _Work] = field(default_factory=OrderedDict, repr=False)
    _fences: OrderedDict[tuple[str, Side], int] = field(default_factory=OrderedDict, repr=False)
    _registers: dict[str, Register] = field(default_factory=dict, repr=False)

    async def perform(self, step: Step) -> StepReport:
        """Do a step, or say what came of it before.

        Raises:
            UsageError: the step is not for this node.
            ConflictError: it came too late: the migration has gone another way.
            NatworkError: it failed; nothing was changed, or the change is undone.
        """
        if self.name != (step.source if step.side is Side.SOURCE else step.target):
            raise UsageError(
                f"step {step.verb} of {step.key} was given to {self.name}",
                hint=f"send steps of the {step.side} to {step.source if step.side is Side.SOURCE else step.target}",
            )
        # The verb belongs to the name: a coordinator whose journal lost its last lines may count differently.
        name = (step.key, step.verb, step.number)
        older = self._raise_fence(step)
        work = self._work.get(name)
        if work is None or (step.attempt != work.attempt and self._failed(work.task)):
            work = _Work(step.attempt, asyncio.create_task(self._begin(step, older)))
            # Whoever asked may be gone when it fails; the answer is still kept for who asks again.
            work.task.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._work[name] = work
            self._forget()
        try:
            return await asyncio.shield(work.task)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if not work.task.cancelled() or (caller is not None and caller.cancelling()):
                raise
            raise ConflictError(
                f"{step.verb} of {step.key} was ended by a later step", hint="nothing to do: it was not wanted"
            ) from None

    async def close(self) -> None:
        """End what is under way, as the death of the process would, but in order."""
        await self._end([work.task for work in self._work.values()])

    # Order among the steps of a migration.

    @staticmethod
    def _failed(task: asyncio.Task[StepReport]) -> bool:
        return task.done() and (task.cancelled() or task.exception() is not None)

    def _raise_fence(self, step: Step) -> list[asyncio.Task[StepReport]]:
        """Refuse a step that comes too late; with one that replaces others, the tasks that have to end first."""
        seat = (step.key, step.side)
        if step.verb not in _FENCES:
            if step.number < self._fences.get(seat, 0):
                raise ConflictError(
                    f"{step.verb} of {step.key} comes after a step that replaced it", hint="nothing to do: it is over"
                )
            return []
        self._fences[seat] = max(step.number, self._fences.get(seat, 0))
        return [
            work.task
            for (key, verb, number), work in self._work.items()
            if key == step.key and SIDE_OF[verb] is step.side and number < step.number and not work.task.done()
        ]

    def _forget(self) -> None:
        while len(self._work) > REMEMBERED:
            oldest = next((name for name, work in self._work.items() if work.task.done()), None)
            if oldest is None:
                return
            del self._work[oldest]
        while len(self._fences) > REMEMBERED:
            self._fences.popitem(last=False)

    @staticmethod
    async def _end(tasks: list[asyncio.Task[StepReport]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _begin(self, step: Step, older: list[asyncio.Task[StepReport]]) -> StepReport:
        await self._end(older)
        match step.verb:
            case Verb.CHECK_SOURCE:
                return await self._check_source(step)
            case Verb.CHECK_TARGET:
                return await self._check_target(step)
            case Verb.PREPARE:
                return await self._prepare(step)
            case Verb.RESTORE:
                return await self._restore(step)
            case Verb.ADDRESS_MOVE:
                self._must_have_arrived(step)
                await self.bridge.attach(step.container)
                return StepReport()
            case Verb.PAGES_FETCHED:
                return await self._pages_fetched(step)
            case Verb.WITHDRAW | Verb.FORCE_WITHDRAW:
                return await self._withdraw(step)
            case Verb.REVIVE:
                self._must_be_current(step)
                how = await self.runtime.revive(step.container, key=step.key)
                await self.bridge.attach(step.container)
                return StepReport(decided=how)
            case Verb.SETTLE_SOURCE:
                return await self._settle_source(step)
            case Verb.SETTLE_TARGET:
                await self.runtime.clean(step.container, key=step.key)
                return StepReport()
            case Verb.CLEAN_SOURCE:
                await _all(
                    self.runtime.clean(step.container, key=step.key),
                    self.transfer.close(target=step.target, key=step.key),
                )
                return StepReport()
            case _:
                return await self._carry(step)

    # Client: the source.

    async def _check_source(self, step: Step) -> StepReport:
        status, abilities, spec = await asyncio.gather(
            self.runtime.status(step.container), self.runtime.abilities(), self.runtime.describe(step.container)
        )
        if status.state is not ContainerState.RUNNING:
            raise ConflictError(
                f"{step.container} is {status.state} on {self.name}, not running",
                hint="ask `natwork status` where it runs, and migrate it from there",
            )
        if arriving := self._register(step.container).arriving:
            raise ConflictError(
                f"{step.container} is still arriving on {self.name} under {arriving}",
                hint="repeat this migration when the other is over",
            )
        _must_know(abilities, step.method, self.name)
        return StepReport(spec=spec)

    async def _carry(self, step: Step) -> StepReport:
        """What the source does between the checks and the restore, and while its pages are being fetched."""
        container, key = step.container, step.key
        self._must_be_current(step)
        match step.verb:
            case Verb.OPEN_PATH:
                self._register(container).note(key, Standing.LEAVING)
                path = await self.transfer.open(step.target)
                return StepReport(detail=f"{path.bandwidth_bytes_per_s:.0f} B/s, {path.rtt_s * 1000:.3f} ms")
            case Verb.PRE_DUMP:
                dump = await self.runtime.pre_dump(container, key=key, images=step.images, parent=step.parent)
                return StepReport(size_bytes=dump.size_bytes, pages_bytes=dump.pages_bytes, frozen_s=dump.frozen_s)
            case Verb.DUMP:
                dump = await self.runtime.dump(
                    container, key=key, images=step.images, parent=step.parent, lazy=step.lazy
                )
                return StepReport(
                    size_bytes=dump.size_bytes,
                    pages_bytes=dump.pages_bytes,
                    frozen_s=dump.frozen_s,
                    port=dump.page_server_port,
                )
            case Verb.PRE_DUMP_TRANSFER | Verb.DUMP_TRANSFER:
                sent = await self.transfer.send_images(
                    container, target=step.target, key=key, images=step.images, basis=step.parent
                )
                return StepReport(size_bytes=sent.size_bytes, sent_bytes=sent.sent_bytes, detail=sent.digest)
            case Verb.VOLUME_PRE_TRANSFER | Verb.VOLUME_TRANSFER:
                sent = await self.transfer.send_volume(container, target=step.target, key=key)
                return StepReport(size_bytes=sent.size_bytes, sent_bytes=sent.sent_bytes, detail=sent.digest)
            case Verb.FREEZE:
                await self.runtime.freeze(container)
                return StepReport()
            case Verb.ADDRESS_DETACH:
                await self.bridge.detach(container)
                return StepReport()
            case Verb.PAGE_TUNNEL:
                server = await self.transfer.open_page_tunnel(target=step.target, key=key, port=step.port)
                return StepReport(port=server.port, page_server=server)
            case Verb.PAGES_SERVED:
                served = await self.runtime.await_pages_served(container, key=key)
                return StepReport(size_bytes=served, sent_bytes=served)
            case _:
                raise UsageError(f"{step.verb} is no step that {self.name} knows", hint="use one version on all nodes")

    async def _settle_source(self, step: Step) -> StepReport:
        register = self._register(step.container)
        if register.standing(step.key) is Standing.DEPARTED:
            return StepReport(detail="settled before")
        self._must_be_current(step)
        await self.runtime.destroy(step.container, key=step.key)
        await _all(
            self.bridge.remove(step.container),
            self.runtime.clean(step.container, key=step.key),
            self.transfer.close(target=step.target, key=step.key),
        )
        register.note(step.key, Standing.DEPARTED)
        return StepReport()

    # Server: the target.

    async def _check_target(self, step: Step) -> StepReport:
        status, abilities = await asyncio.gather(self.runtime.status(step.container), self.runtime.abilities())
        if status.state is not ContainerState.ABSENT:
            raise ConflictError(
                f"{self.name} has a container {step.container} already ({status.state})",
                hint="it may be left over from an earlier migration: see `natwork migration list`",
            )
        _must_know(abilities, step.method, self.name)
        self._must_be_welcome(step)
        return StepReport()

    async def _prepare(self, step: Step) -> StepReport:
        spec = _spec(step)
        register = self._must_be_welcome(step)
        if register.standing(step.key) is None:
            status = await self.runtime.status(step.container)
            if status.state is not ContainerState.ABSENT:
                raise ConflictError(
                    f"{self.name} has a container {step.container} by now ({status.state})",
                    hint="two migrations of one container at once: repeat this one when the other is over",
                )
            register.note(step.key, Standing.EXPECTED)
        await _all(self.runtime.prepare(spec, key=step.key), self.bridge.prepare(spec, key=step.key))
        return StepReport()

    async def _restore(self, step: Step) -> StepReport:
        register = self._must_be_welcome(step)
        if register.standing(step.key) in (Standing.RESTORED, Standing.WHOLE):
            return StepReport(detail="restored before")
        if register.standing(step.key) is None:
            raise ConflictError(
                f"{step.key} was never prepared on {self.name}", hint="repeat the migration from its beginning"
            )
        await self.runtime.restore(step.container, key=step.key, images=step.images, page_server=step.page_server)
        try:
            register.note(step.key, Standing.RESTORED if step.lazy else Standing.WHOLE)
        except NatworkError:
            # A container that runs here without the note would run twice once the source has it back.
            await self.runtime.destroy(step.container, key=step.key)
            raise
        return StepReport()

    async def _pages_fetched(self, step: Step) -> StepReport:
        register = self._must_have_arrived(step)
        if register.standing(step.key) is Standing.WHOLE:
            return StepReport(detail="whole before")
        fetched = await self.runtime.await_pages_fetched(step.container, key=step.key)
        register.note(step.key, Standing.WHOLE)
        return StepReport(size_bytes=fetched, sent_bytes=fetched)

    async def _withdraw(self, step: Step) -> StepReport:
        register = self._register(step.container)
        if step.verb is Verb.FORCE_WITHDRAW and register.standing(step.key) is Standing.RESTORED:
            await self._look_for_pages(step, register)
        standing = register.standing(step.key)
        if standing is Standing.WHOLE or (standing is Standing.RESTORED and step.verb is Verb.WITHDRAW):
            return StepReport(decided=RESTORED)
        # First the note, then the end of it: a restore that comes in between is refused.
        register.note(step.key, Standing.WITHDRAWN)
        if register.expected(step.key) and not register.superseded(step.key):
            await self.runtime.destroy(step.container, key=step.key)
            await _all(self.bridge.remove(step.container), self.runtime.clean(step.container, key=step.key))
        return StepReport(decided=WITHDRAWN)

    async def _look_for_pages(self, step: Step, register: Register) -> None:
        """Note `whole` if the container runs with all its memory. A runtime without an answer is asked again later."""
        try:
            async with asyncio.timeout(LAST_PAGES_S):
                await self.runtime.await_pages_fetched(step.container, key=step.key)
                status = await self.runtime.status(step.container)
        except TimedOutError:
            raise
        except (NatworkError, TimeoutError) as error:
            logger.warning("%s is ended on %s, its memory is not whole: %s", step.container, self.name, error)
            return
        if status.state is ContainerState.RUNNING:
            register.note(step.key, Standing.WHOLE)

    # The register.

    def _register(self, container: str) -> Register:
        register = self._registers.get(container)
        if register is None:
            register = self._registers[container] = Register(self.journal, container)
        return register

    def _must_be_current(self, step: Step) -> Register:
        register = self._register(step.container)
        if register.superseded(step.key):
            raise ConflictError(
                f"{step.key} is superseded on {self.name}: {step.container} moves under another key",
                hint="nothing to do: the newer migration decides",
            )
        return register

    def _must_be_welcome(self, step: Step) -> Register:
        register = self._must_be_current(step)
        if register.standing(step.key) is Standing.WITHDRAWN:
            raise ConflictError(
                f"{step.key} was withdrawn on {self.name}", hint="begin a new migration, with a key of its own"
            )
        return register

    def _must_have_arrived(self, step: Step) -> Register:
        register = self._must_be_current(step)
        if register.standing(step.key) not in (Standing.RESTORED, Standing.WHOLE):
            raise ConflictError(
                f"{step.container} did not arrive on {self.name} under {step.key}", hint="ask it to withdraw"
            )
        return register


async def _all(*work: Awaitable[object]) -> None:
    """Await all, also when some fail; then raise the first error, or one that names them all."""
    results = await asyncio.gather(*work, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if len(errors) > 1 and all(isinstance(error, NatworkError) for error in errors):
        raise ActionError("; ".join(str(error) for error in errors), hint="see each of them") from errors[0]
    if errors:
        raise errors[0]


def _must_know(abilities: RuntimeAbilities, method: MigrationMethod, node: str) -> None:
    if method not in abilities.methods:
        reason = next((why for which, why in abilities.reasons if which is method), "not supported")
        raise PreconditionError(
            f"{node} cannot migrate {method}: {reason}", hint="`natwork doctor` tells what is missing"
        )


def _spec(step: Step) -> ContainerSpec:
    if step.spec is None:
        raise UsageError(f"{step.verb} of {step.key} without a container's description", hint="check the source first")
    return step.spec
