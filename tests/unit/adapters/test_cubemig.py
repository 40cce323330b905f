from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from natwork_ray.adapters import cubemig
from natwork_ray.adapters.cubemig import MIB, read_dumps
from natwork_ray.errors import InputError, PreconditionError

HEAD = "Image,Checkpointed,Checkpoint size,Freezing time,Frozen time,Memdump time,Memwrite time,Total dump time\n"


def write(folder: Path, name: str, *cells: str) -> Path:
    rows = "".join(f"img,26/05/2024,{size},{rest},80\n" for size, rest in (cell.split("|") for cell in cells))
    path = folder / f"{name}-combined-data.csv"
    path.write_text(HEAD + rows, encoding="utf-8")
    return path


def test_sizes_and_times_are_si_with_or_without_units(tmp_path: Path) -> None:
    write(tmp_path, "redis-0", "2.6 MiB|380 µs,74.161 ms,3.643 ms,2.267 ms")
    write(tmp_path, "cpu-0", "4.3 MiB|277,73.177,4.708,3.109")
    cpu, redis = read_dumps(tmp_path)
    assert (cpu.application, cpu.service) == ("cpu-0", "cpu")
    assert cpu.size_bytes == pytest.approx(4.3 * MIB)
    assert cpu.frozen_s == pytest.approx(0.073177)
    assert redis.frozen_s == pytest.approx(0.074161)


@pytest.mark.parametrize(
    "cell", ["4.3 GiB|1,2,3,4", "4.3|1,2,3,4", "0 MiB|1,2,3,4", "4 MiB|1,nan,3,4", "4 MiB|1,5 µs,3,4", "4 MiB|1,-5,3,4"]
)
def test_an_odd_cell_is_refused_with_its_place(tmp_path: Path, cell: str) -> None:
    write(tmp_path, "redis-0", "4 MiB|1,2,3,4", cell)
    with pytest.raises(InputError, match=r"redis-0-combined-data\.csv, line 3, column"):
        read_dumps(tmp_path)


def test_other_folders_and_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(PreconditionError, match="holds no file"):
            read_dumps(folder)
    path = write(tmp_path, "redis-0", "4 MiB|1,2,3,4")
    path.write_text(HEAD + "img,1\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2: 2 cells"):
        read_dumps(tmp_path)
    path.write_text("a,b\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 1"):
        read_dumps(tmp_path)
    monkeypatch.setattr(cubemig, "MAX_FILE_BYTES", 2)
    with pytest.raises(InputError, match="more than"):
        read_dumps(tmp_path)
    monkeypatch.setattr(cubemig, "MAX_FILES", 0)
    with pytest.raises(InputError, match="1 files"):
        read_dumps(tmp_path)


@pytest.mark.data
def test_the_published_dumps_are_read_whole(data_dir: Path) -> None:
    dumps = read_dumps(data_dir / "cubemig")
    assert len(dumps) == 17_147
    assert {dump.service for dump in dumps} == {"cpu", "mongo", "redis"}
    assert 0.09 < statistics.median(dump.frozen_s for dump in dumps) < 0.11
