"""The folder of models: packaged defaults, atomic saving, names that are no paths; and the packaged model itself."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest

from natwork_ray.adapters.model_directory import KEPT, ModelDirectory
from natwork_ray.domain.values import Backend
from natwork_ray.errors import InputError, NotFoundError, StoreError
from natwork_ray.profiling.bounds import DEFAULT_MODEL
from natwork_ray.profiling.detector import TwoStageDetector
from natwork_ray.profiling.model_card import TrainingSettings
from natwork_ray.profiling.model_file import loads

# What the packaged model was made from: docs/profiling.md.
_MADE_FROM = {"seed": 11, "runs": 8, "hours": 3.0}


@pytest.fixture
def store(tmp_path: Path) -> ModelDirectory:
    packaged = tmp_path / "packaged"
    packaged.mkdir()
    (packaged / "profiler.safetensors").write_bytes(b"packaged")
    return ModelDirectory(tmp_path / "state" / "models", packaged=packaged)


def test_a_saved_model_hides_the_packaged_one(store: ModelDirectory, tmp_path: Path) -> None:
    assert store.load("profiler") == b"packaged"
    store.save("profiler", b"mine")
    store.save("profiler", b"mine, newer")
    store.save("other", b"x")
    assert store.load("profiler") == b"mine, newer"
    folder = tmp_path / "state" / "models"
    assert sorted(p.name for p in folder.iterdir()) == ["other.safetensors", "profiler.safetensors", "versions"]
    assert stat.S_IMODE((folder / "profiler.safetensors").stat().st_mode) & 0o077 == 0
    (folder / "profiler.safetensors").unlink()
    assert store.load("profiler") == b"packaged"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_versions_are_kept_newest_first_and_the_packaged_one_last(store: ModelDirectory) -> None:
    assert [(v.sha256, v.packaged) for v in store.versions("profiler")] == [(digest(b"packaged"), True)]
    assert store.versions("other") == ()
    store.save("profiler", b"one")
    published = store.publish("profiler", b"two")
    assert (published.sha256, published.size_bytes, published.packaged) == (digest(b"two"), 3, False)
    assert store.publish("profiler", b"two") == published
    assert store.load("profiler") == b"one", "what is published only is not used"
    assert [v.sha256 for v in store.versions("profiler")] == [digest(d) for d in (b"two", b"one", b"packaged")]
    assert store.version("profiler", digest(b"two")) == b"two"
    assert store.version("profiler", digest(b"packaged")) == b"packaged"
    with pytest.raises(NotFoundError, match="no version"):
        store.version("profiler", digest(b"three"))
    with pytest.raises(InputError, match="SHA-256"):
        store.version("profiler", "../../etc/passwd")


def test_a_version_is_used_and_the_one_before_comes_back(store: ModelDirectory) -> None:
    with pytest.raises(NotFoundError, match="no other version"):
        store.rollback("profiler")
    for data in (b"one", b"two"):
        store.publish("profiler", data)
    store.use("profiler", digest(b"two"))
    assert store.load("profiler") == b"two"
    assert store.rollback("profiler") == digest(b"packaged")
    assert store.load("profiler") == b"packaged"
    store.use("profiler", digest(b"one"))
    assert store.rollback("profiler") == digest(b"packaged")
    assert store.rollback("profiler") == digest(b"one")


def test_only_the_newest_versions_are_kept_and_those_in_use(store: ModelDirectory) -> None:
    store.save("profiler", b"in use before")
    store.save("profiler", b"in use")
    for number in range(2 * KEPT):
        store.publish("profiler", b"%d" % number)
    kept = [v.sha256 for v in store.versions("profiler") if not v.packaged]
    newest = [digest(b"%d" % number) for number in range(2 * KEPT - 1, KEPT - 1, -1)]
    assert kept == [*newest, digest(b"in use"), digest(b"in use before")]
    assert store.rollback("profiler") == digest(b"in use before")


def test_a_version_that_has_rotted_is_refused(store: ModelDirectory, tmp_path: Path) -> None:
    store.publish("profiler", b"sound")
    (path,) = (tmp_path / "state" / "models" / "versions" / "profiler").glob("*.safetensors")
    path.write_bytes(b"rotten")
    with pytest.raises(StoreError, match="does not hold"):
        store.use("profiler", digest(b"sound"))
    assert store.load("profiler") == b"packaged"


def test_without_a_folder_versions_are_the_packaged_ones() -> None:
    store = ModelDirectory()
    (version,) = store.versions(DEFAULT_MODEL)
    assert version.packaged
    for change in (lambda: store.publish(DEFAULT_MODEL, b""), lambda: store.use(DEFAULT_MODEL, version.sha256)):
        with pytest.raises(StoreError, match="no folder"):
            change()
    with pytest.raises(NotFoundError):
        store.rollback(DEFAULT_MODEL)


def test_unknown_model(store: ModelDirectory) -> None:
    with pytest.raises(NotFoundError, match="'forecaster'"):
        store.load("forecaster")


@pytest.mark.parametrize("name", ["", "../profiler", "a/b", "Profiler", "a" * 65, ".hidden", "a\0b", "a\n"])
def test_names_are_no_paths(store: ModelDirectory, name: str) -> None:
    for attempt in (lambda: store.load(name), lambda: store.save(name, b"")):
        with pytest.raises(InputError, match="model name"):
            attempt()


def test_without_a_folder_it_is_read_only() -> None:
    store = ModelDirectory()
    assert store.load(DEFAULT_MODEL)
    with pytest.raises(StoreError, match="no folder"):
        store.save("mine", b"")


def test_disk_errors_are_store_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot save"):
        ModelDirectory(tmp_path / "file").save("mine", b"")
    (tmp_path / "mine.safetensors").mkdir()
    with pytest.raises(StoreError, match="cannot read"):
        ModelDirectory(tmp_path).load("mine")
    with pytest.raises(StoreError, match="cannot read"):
        ModelDirectory(tmp_path).save("mine", b"")
    assert not list(tmp_path.glob("*.part"))
    assert not list(tmp_path.glob(".mine*"))


def _packaged() -> TwoStageDetector:
    return loads(ModelDirectory().load(DEFAULT_MODEL))


def test_the_packaged_model_is_the_one_the_defaults_make() -> None:
    card = _packaged().card
    assert card.settings == TrainingSettings()
    assert (card.trained_on, card.runs) == (Backend.EMULATED, _MADE_FROM["runs"])
