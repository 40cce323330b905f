"""Which version of a model answers: chosen by a person, recorded in the journal, learnt by the replicas.

Two parts, since two processes have to do with it:

- `ModelShelf` stands beside the control service. It keeps the versions, turns a choice into an event (so that it is
  durable, audited, and undone by nobody's crash), and tells whoever waits that the choice has changed.
- `ModelDesk` stands at a door. It lets nothing onto the shelf, and nothing into use, that the replicas cannot load, and
  refuses a version that would refuse what clients send now.

Rules kept:
1. A version is named by the SHA-256 of its bytes, which also stands in every answer it gives.
2. A choice is made of versions that are kept; the version in use before it is kept as well, so it can be taken back.
3. Until a person chooses, what the system was started with answers.

Left out: choosing by itself. A model that does better on paper is put into use by a person.

    desk = ModelDesk(shelf, check)
    version = await desk.publish("profiler", data)
    await desk.use("profiler", version.sha256, by="ada", note="retrained", key="7f3a")
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Callable, Mapping
from typing import Protocol

from natwork_ray.control.direct import DirectControl
from natwork_ray.control.events import ModelChosen
from natwork_ray.domain.model_versions import ModelInUse, ModelOverview, ModelVersion
from natwork_ray.domain.values import value
from natwork_ray.errors import ConflictError, NotFoundError
from natwork_ray.ports import VersionedModelStore


@value
class ModelFacts:
    """What a replica says of a version that it loaded to try it.

    Attributes:
        sha256: digest of the bytes that were tried.
        window: samples per window that it needs.
        window_in_use: samples per window that the version in use needs.
    """

    sha256: str
    window: int
    window_in_use: int


class ModelCheck(Protocol):
    """Tries a version where it would answer."""

    async def check(self, name: str, data: bytes) -> ModelFacts:
        """Load the version without using it.

        Raises:
            InputError: it does not load.
            TimedOutError: nobody is there to try it.
        """
        ...


class ShelfApi(Protocol):
    """The shelf, wherever it stands. Every coroutine may raise TimedOutError while the control service restarts."""

    async def models(self) -> tuple[ModelOverview, ...]:
        """Every model with its versions."""
        ...

    async def publish_model(self, name: str, data: bytes) -> ModelVersion:
        """Keep a version without using it."""
        ...

    async def model_data(self, name: str, sha256: str) -> bytes:
        """The bytes of a version; NotFoundError when it is not kept."""
        ...

    async def choose_model(
        self, name: str, sha256: str, *, by: str, note: str, key: str | None
    ) -> tuple[ModelInUse, bool]:
        """Put a version into use; what is in use now, and whether the same choice was made before under that key."""
        ...

    async def model_in_use(self, name: str, *, other_than: str | None, patience_s: float) -> ModelInUse:
        """The version in use: at once when it is another than `other_than`, else after `patience_s` at the latest."""
        ...


class ModelShelf:
    """`ShelfApi` over a control service in this process."""

    def __init__(
        self, control: DirectControl, store: VersionedModelStore, defaults: Mapping[str, Callable[[], bytes]]
    ) -> None:
        """`defaults` names the models that have a door, with what the system was started with."""
        self._control, self._store = control, store
        self._defaults = dict(defaults)
        self._first: dict[str, str] = {}
        self._changed = asyncio.Condition()

    async def models(self) -> tuple[ModelOverview, ...]:
        """See `ShelfApi`. A model of which this installation has none is left out."""
        found = []
        for name in self._defaults:
            try:
                in_use = self._in_use(name)
            except NotFoundError:
                continue
            found.append(ModelOverview(name=name, in_use=in_use, versions=self._store.versions(name)))
        return tuple(found)

    async def publish_model(self, name: str, data: bytes) -> ModelVersion:
        """See `ShelfApi`.

        Raises:
            NotFoundError: no door serves a model of that name.
            StoreError: it cannot be kept.
        """
        self._known(name)
        return self._store.publish(name, data)

    async def model_data(self, name: str, sha256: str) -> bytes:
        """See `ShelfApi`."""
        default = self._known(name)
        try:
            return self._store.version(name, sha256)
        except NotFoundError:
            # What the system was started with may be a file that was never published.
            data = default()
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
            raise

    async def choose_model(
        self, name: str, sha256: str, *, by: str, note: str, key: str | None
    ) -> tuple[ModelInUse, bool]:
        """See `ShelfApi`.

        Raises:
            NotFoundError: no such model or version.
            StoreError: it cannot be read.
        """
        data = await self.model_data(name, sha256)
        before = self._in_use(name).sha256
        event = ModelChosen(
            id=f"model:{name}:{uuid.uuid4() if key is None else key}",
            at_s=self._control.at_s,
            name=name,
            sha256=sha256,
            previous=before if before != sha256 else self._in_use(name).previous,
            by=by,
            note=note,
        )
        self._store.publish(name, data)
        self._store.publish(name, await self.model_data(name, before))
        (answer,) = await self._control.submit((event,))
        answer.unwrap()
        if not answer.known:
            self._store.use(name, sha256)  # so that the next start of the system begins with it
            async with self._changed:
                self._changed.notify_all()
        return self._in_use(name), answer.known

    async def model_in_use(self, name: str, *, other_than: str | None, patience_s: float) -> ModelInUse:
        """See `ShelfApi`.

        Raises:
            NotFoundError: no such model.
        """
        self._known(name)
        try:
            async with asyncio.timeout(patience_s), self._changed:
                await self._changed.wait_for(lambda: self._in_use(name).sha256 != other_than)
        except TimeoutError:
            pass
        return self._in_use(name)

    def _known(self, name: str) -> Callable[[], bytes]:
        default = self._defaults.get(name)
        if default is None:
            raise NotFoundError(
                f"there is no model {name[:80]!r} to be served", hint=f"there are: {', '.join(self._defaults)}"
            )
        return default

    def _in_use(self, name: str) -> ModelInUse:
        chosen = next((m for m in self._control.models_chosen() if m.name == name), None)
        if chosen is not None:
            return chosen
        if name not in self._first:
            self._first[name] = hashlib.sha256(self._known(name)()).hexdigest()
        return ModelInUse(name=name, sha256=self._first[name])


class ModelDesk:
    """Takes new versions and choices for a shelf, once the replicas have shown that they can load them."""

    def __init__(self, shelf: ShelfApi, check: ModelCheck) -> None:
        self._shelf, self._check = shelf, check

    async def models(self) -> tuple[ModelOverview, ...]:
        """Every model with its versions."""
        return await self._shelf.models()

    async def publish(self, name: str, data: bytes) -> ModelVersion:
        """Try a version and keep it.

        Raises:
            InputError: it does not load; nothing is kept.
            NotFoundError: no door serves a model of that name.
        """
        await self._overview(name)
        await self._check.check(name, data)
        return await self._shelf.publish_model(name, data)

    async def use(
        self, name: str, sha256: str, *, by: str, note: str = "", key: str | None = None
    ) -> tuple[ModelInUse, bool]:
        """Put a version into use; what is in use now, and whether that choice was made before under that key.

        Raises:
            NotFoundError: no such model or version.
            InputError: it does not load; the one in use stays.
            ConflictError: it needs longer windows than clients send now; the one in use stays.
        """
        facts = await self._check.check(name, await self._shelf.model_data(name, sha256))
        if facts.window > facts.window_in_use:
            raise ConflictError(
                f"version {sha256[:12]} needs {facts.window} samples per window, the one in use {facts.window_in_use}",
                hint="clients that send no more than that would be refused: train with a shorter window, or start the "
                "system with this model (--set model=FILE)",
            )
        return await self._shelf.choose_model(name, sha256, by=by, note=note, key=key)

    async def rollback(self, name: str, *, by: str, note: str = "", key: str | None = None) -> tuple[ModelInUse, bool]:
        """Put the version used before into use again. Errors as `use`.

        Raises:
            ConflictError: no other version was used before.
        """
        in_use = (await self._overview(name)).in_use
        if in_use.previous is None:
            raise ConflictError(f"no other version of model {name!r} was used", hint="`natwork models list` shows them")
        return await self.use(name, in_use.previous, by=by, note=note, key=key)

    async def _overview(self, name: str) -> ModelOverview:
        for overview in await self._shelf.models():
            if overview.name == name:
                return overview
        raise NotFoundError(f"there is no model {name[:80]!r} to be served", hint="`natwork models list` shows them")
