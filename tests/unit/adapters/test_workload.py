"""The workload burns what its levels say and answers so that a client can tell what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.adapters import workload
from natwork_ray.adapters.workload import MIB, Load, load_of, make_rootfs, workload_spec
from natwork_ray.adapters.workload.service import LOADS, PAGE, Burner, Service, serve
from natwork_ray.domain.migrations import LoadClass, LoadLevel
from natwork_ray.errors import PreconditionError, UsageError


def _levels(**levels: str) -> LoadClass:
    given = {"cpu": "low", "memory": "low", "storage": "low", "network": "zero", **levels}
    return LoadClass(**{name: LoadLevel(level) for name, level in given.items()})


@pytest.mark.parametrize(
    ("resource", "field"),
    [
        ("cpu", "cpu_cores"),
        ("memory", "dirty_bytes_per_s"),
        ("memory", "working_set_bytes"),
        ("storage", "storage_bytes_per_s"),
        ("network", "network_bytes_per_s"),
    ],
)
def test_a_higher_level_burns_more(resource: str, field: str) -> None:
    loads = [getattr(load_of(_levels(**{resource: level})), field) for level in ("low", "medium", "high")]
    assert 0 < loads[0] < loads[1] < loads[2]


def test_only_networking_knows_zero() -> None:
    assert load_of(_levels()).network_bytes_per_s == 0
    for resource in ("cpu", "memory", "storage"):
        with pytest.raises(UsageError, match=f"{resource} = zero"):
            load_of(_levels(**{resource: "zero"}))


def test_held_memory_can_be_named_and_bounds_the_working_set() -> None:
    load = load_of(_levels(memory="high"), memory_bytes=8 * MIB)
    assert (load.memory_bytes, load.working_set_bytes) == (8 * MIB, 8 * MIB)


def test_the_program_knows_every_field_of_a_load() -> None:
    assert set(LOADS) == set(vars(Load()))


def test_the_specification_carries_the_load_to_the_program() -> None:
    load = load_of(_levels(network="medium"))
    spec = workload_spec("web", address="10.77.3.50/24", mac="02:00:00:00:00:01", load=load, cpu_limit_cores=0.5)
    assert json.loads(spec.command[-1]) == {**vars(load), "peer": "10.77.3.1"}
    assert spec.command[1:4] == ("-I", "-S", "/srv/service.py")
    assert (spec.image, spec.cpu_limit_cores, spec.writable_root) == (workload.IMAGE, 0.5, True)


def test_a_limit_below_the_load_is_refused() -> None:
    with pytest.raises(UsageError, match="memory limit 64 MiB is below"):
        workload_spec(
            "web", address="10.77.3.50/24", mac="02:00:00:00:00:01",
            load=Load(memory_bytes=64 * MIB), memory_limit_bytes=64.0 * MIB,
        )  # fmt: skip
    with pytest.raises(UsageError, match="address = 'here'"):
        workload_spec("web", address="here", mac="02:00:00:00:00:01", load=Load())


def test_a_root_file_system_is_links_a_program_and_data(tmp_path: Path) -> None:
    make_rootfs(tmp_path / "rootfs", volume_bytes=17 * MIB + 5, rng=random.Random(1))
    root = tmp_path / "rootfs"
    assert sum(path.stat().st_size for path in (root / "data").iterdir()) == 17 * MIB + 5
    assert (root / "srv/service.py").read_bytes() == Path(workload.service.__file__).read_bytes()
    assert not any((root / "usr").iterdir())
    for name in ("bin", "lib"):
        assert (root / name).readlink() == Path("/", name).readlink()
    make_rootfs(root, volume_bytes=0, rng=random.Random(1))  # once more, over what is there


def test_a_machine_without_merged_usr_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "_LINKS", ("etc",))
    with pytest.raises(PreconditionError, match="/etc is a folder of its own"):
        make_rootfs(tmp_path / "rootfs", volume_bytes=0, rng=random.Random(1))


def _changed(before: bytes, after: bytes) -> list[int]:
    return [n for n in range(len(before) // PAGE) if before[n * PAGE] != after[n * PAGE]]


@given(st.integers(1, 40), st.floats(0.01, 0.5))
def test_pages_are_written_at_the_rate_and_only_in_the_working_set(pages: int, seconds: float) -> None:
    burner = Burner({"memory_bytes": 40 * PAGE, "working_set_bytes": pages * PAGE, "dirty_bytes_per_s": 100 * PAGE})
    try:
        before = bytes(burner.memory)
        burner.tick(seconds)
        changed = _changed(before, bytes(burner.memory))
        # A random byte is the former one once in 256 times.
        assert len(changed) <= min(int(100 * seconds), pages)
        assert all(n < min(int(100 * seconds + 1e-9), pages) for n in changed)
    finally:
        burner.close()


def test_no_page_is_written_twice_before_all_were_written_once() -> None:
    burner = Burner({"memory_bytes": 64 * PAGE, "working_set_bytes": 64 * PAGE, "dirty_bytes_per_s": 10 * PAGE})
    before = bytes(burner.memory)
    seen: list[int] = []
    for _ in range(6):
        then = bytes(burner.memory)
        burner.tick(1.0)
        seen += _changed(then, bytes(burner.memory))
    burner.close()
    assert len(seen) == len(set(seen))
    assert len(_changed(before, bytes(burner.memory))) > 55


def test_storage_goes_round_in_a_file_of_its_size(tmp_path: Path) -> None:
    loads = {"storage_bytes_per_s": 2 * MIB, "storage_file_bytes": MIB}
    burner = Burner(loads, folder=str(tmp_path))
    for _ in range(10):
        burner.tick(0.1)
    burner.close()
    assert (tmp_path / "ring").stat().st_size == MIB


def test_datagrams_leave_at_the_rate_and_nobody_has_to_listen() -> None:
    async def scenario() -> int:
        received = []

        class Sink(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: object) -> None:
                received.append(len(data))

        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Sink, local_addr=("127.0.0.1", 0))
        burner = Burner({"network_bytes_per_s": 14_000}, peer="127.0.0.1")
        burner._peer = transport.get_extra_info("sockname")
        burner.tick(1.0)
        while len(received) < 10:  # noqa: ASYNC110 - the loop has to turn for datagrams to come
            await asyncio.sleep(0)
        transport.close()
        burner._peer = ("256.256.256.256", 9)
        burner.tick(1.0)
        assert burner._owed["network"] == 0.0
        burner.close()
        return sum(received)

    assert asyncio.run(scenario()) == 14_000


def test_the_burner_runs_until_told() -> None:
    import threading

    stop, burner = threading.Event(), Burner({"cpu_cores": 0.5})
    thread = threading.Thread(target=burner.run, args=(stop,))
    thread.start()
    stop.set()
    thread.join(5)
    burner.close()
    assert not thread.is_alive()


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):  # the other side was first
        await writer.wait_closed()


async def _served(client: object) -> Service:
    service = Service()
    ports = []
    for _ in range(2):
        probe = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        ports.append(probe.sockets[0].getsockname()[1])
        probe.close()
        await probe.wait_closed()
    server = asyncio.create_task(serve(service, "127.0.0.1", *ports))
    try:
        for _ in range(1000):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", ports[1])
                await _closed(writer)
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0)
        await client(*ports)  # type: ignore[operator]
    finally:
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)
        sessions = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*sessions, return_exceptions=True)  # they end with their clients
        for _ in range(5):
            await asyncio.sleep(0)  # transports close one turn later
    return service


def test_requests_are_answered_by_number_count_and_instance() -> None:
    said: list[bytes] = []

    async def client(echo: int, _: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", echo)
        for number in (7, 8, 10):
            writer.write(b"%d\n" % number)
            said.append(await reader.readline())
        writer.write(b"x" * 20_000)  # a line without end: the session is closed
        assert await reader.read() == b""
        await _closed(writer)

    service = asyncio.run(_served(client))
    assert said == [f"{n} {count} {service.instance}\n".encode() for n, count in ((7, 1), (8, 2), (10, 3))]


def test_http_keeps_the_connection_and_refuses_what_it_does_not_know() -> None:
    async def client(_: int, http: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", http)
        for count in (1, 2):
            writer.write(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK")
            size = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
            assert json.loads(await reader.readexactly(size))["count"] == count
        writer.write(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert b"Connection: close" in await reader.read()
        await _closed(writer)
        for request, answer in (
            (b"POST / HTTP/1.1\r\n\r\n", b"HTTP/1.1 405"),
            (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 101, b""),
            (b"GET /" + b"a" * 20_000, b""),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", http)
            writer.write(request)
            assert (await reader.read()).startswith(answer)
            await _closed(writer)

    asyncio.run(_served(client))
