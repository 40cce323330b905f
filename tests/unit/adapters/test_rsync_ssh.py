"""Transfers over stand-ins for ssh and rsync: what is verified, sent again, told, and left behind."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.adapters import arrival, rsync_ssh, ssh_way
from natwork_ray.adapters.arrival import digest
from natwork_ray.adapters.rsync_ssh import RsyncSsh
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.errors import (
    ActionError,
    InputError,
    NatworkError,
    NotFoundError,
    PreconditionError,
    TimedOutError,
    UsageError,
    VerificationError,
)

# `nsenter --net=... -- program`, `ssh -F config -M -S control -T host command`, `ssh ... -O forward -R spec host`.
_NSENTER = '#!/bin/sh\nshift 2\nexec "$@"\n'
_SSH = """#!/bin/sh
mode=$(cat {mode}/ssh)
if [ "$mode" = refuse ]; then echo "Host key verification failed." >&2; exit 255; fi
if [ "$mode" = mute ]; then exec sleep 60; fi
if [ "$mode" = garbled ]; then echo "Welcome!"; exec sleep 60; fi
for last; do :; done
case " $* " in
  *" -O "*) echo "$*" >> {mode}/forwards; [ "$mode" = odd ] && echo nothing || echo 43210; exit 0;;
esac
exec sh -c "exec $last"
"""
# Copies, and says so as rsync does. The mode says how often and how it fails.
_RSYNC = """#!/bin/sh
if [ "$1" = --version ]; then cat {mode}/version; exit 0; fi
echo "$*" >> {mode}/ran
mode=$(head -n 1 {mode}/rsync)
sed -i 1d {mode}/rsync
case "$mode" in
  full) echo "rsync: write failed: No space left on device (28)" >&2; exit 11;;
  silent) exit 23;;
  chatty) echo "Hello"; exit 0;;
  hang) exec sleep 60;;
esac
for last; do from=$to; to=$last; done
to=${{to#*:}}
find "$from" -type f | while read -r f; do echo "1000:<f+++++++++"; done
echo "0:cd+++++++++"
if [ "$mode" = corrupt ]; then
  rm -rf {mode}/copy; cp -a "$from" {mode}/copy; from={mode}/copy/
  echo x >> {mode}/copy/pages-1.img
fi
cp -a "$from." "$to"
"""


class Stage:
    """Two nodes in folders, with the stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.mode = folder / "mode"
        self.mode.mkdir()
        for name, text in (("ssh", ""), ("rsync", ""), ("version", "xattrs, no ACLs"), ("ran", ""), ("forwards", "")):
            (self.mode / name).write_text(text)
        tools = {}
        for name, script in (("nsenter", _NSENTER), ("ssh", _SSH), ("rsync", _RSYNC)):
            path = folder / name
            path.write_text(script.format(mode=self.mode) if "{mode}" in script else script)
            path.chmod(0o755)
            tools[name] = path
        others = ("runc", "criu", "sshd", "ssh_keygen", "ip", "arping", "iptables_restore")
        self.tools = Toolchain(**tools, **{name: Path("/nowhere", name) for name in others})
        self.here, self.there = (self._node(folder, name) for name in ("node-0", "node-1"))

    @staticmethod
    def _node(folder: Path, name: str) -> NodeLayout:
        layout = NodeLayout(
            testbed="nw1234", name=name, folder=folder / name, images=folder / name / "images", netns=f"nw1234-{name}",
            address="10.77.3.2", ssh_port=2222, bridge="nw1234br",
        )  # fmt: skip
        for path in (layout.ssh, layout.images, layout.bundles):
            path.mkdir(parents=True)
        (layout.ssh / "arrival.py").write_bytes(Path(arrival.__file__).read_bytes())
        return layout

    def rsyncs(self, *modes: str) -> None:
        (self.mode / "rsync").write_text("".join(f"{mode}\n" for mode in modes))

    def ran(self) -> list[str]:
        return (self.mode / "ran").read_text().splitlines()

    def images(self, name: str, pages: bytes = b"pages") -> Path:
        folder = self.here.image_set("key", name)
        folder.mkdir(parents=True)
        (folder / "pages-1.img").write_bytes(pages)
        (folder / "core-1.img").write_bytes(b"core")
        return folder

    def play(self, act: Callable[[RsyncSsh], Coroutine[Any, Any, None]], **options: float) -> None:
        async def scenario() -> None:
            nodes = {node.name: node for node in (self.here, self.there)}
            transfer = RsyncSsh(self.here, nodes, self.tools, **options)
            try:
                await act(transfer)
            finally:
                await transfer.shut()
            assert not list(self.here.ssh.glob("ctl-*"))

        asyncio.run(scenario())


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def _send(transfer: RsyncSsh, images: str = "final", basis: str | None = None) -> Coroutine[Any, Any, Any]:
    return transfer.send_images("web", target="node-1", key="key", images=images, basis=basis)


def test_what_arrived_is_reported_with_its_digest(stage: Stage) -> None:
    stage.images("final")

    async def act(transfer: RsyncSsh) -> None:
        path = await transfer.open("node-1")
        assert path.bandwidth_bytes_per_s > 0
        assert path.rtt_s > 0
        assert await transfer.open("node-1") is path  # measured once per connection
        sent = await _send(transfer)
        assert (sent.size_bytes, sent.sent_bytes) == (9.0, 2000.0)
        assert sent.digest == digest(stage.there.image_set("key", "final"))[1]

    stage.play(act)
    (line,) = stage.ran()
    assert "--ignore-times" in line
    assert "--whole-file" in line
    assert "StrictHostKeyChecking" not in line  # it stands in the configuration, as yes


def test_a_basis_asks_for_differences_unless_the_set_is_one(stage: Stage) -> None:
    stage.images("pre-1")
    (stage.images("final") / "parent").symlink_to("../pre-1")
    stage.images("other")

    async def act(transfer: RsyncSsh) -> None:
        await _send(transfer, "pre-1")
        await _send(transfer, "other", "pre-1")
        await _send(transfer, "final", "pre-1")

    stage.play(act, bwlimit_bytes_per_s=2048.0)
    _, other, final = stage.ran()
    assert "--no-whole-file --copy-dest=../pre-1" in other
    assert "--copy-dest" not in final
    assert all("--bwlimit=2" in line for line in stage.ran())


def test_a_difference_is_sent_once_more_whole(stage: Stage) -> None:
    stage.images("final")
    stage.rsyncs("corrupt", "ok")

    async def act(transfer: RsyncSsh) -> None:
        await _send(transfer, basis="pre-1")

    stage.play(act)
    first, second = stage.ran()
    assert "--copy-dest" in first
    assert "--whole-file --ignore-times" in second
    assert (stage.there.image_set("key", "final") / "pages-1.img").read_bytes() == b"pages"


def test_a_difference_that_stays_is_an_error(stage: Stage) -> None:
    stage.images("final")
    stage.rsyncs("corrupt", "corrupt")

    async def act(transfer: RsyncSsh) -> None:
        with pytest.raises(VerificationError, match="is not what node-0 sent, twice"):
            await _send(transfer)

    stage.play(act)


@pytest.mark.parametrize(
    ("mode", "kind", "words"),
    [
        ("full", ActionError, "file error: rsync: write failed: No space left on device"),
        ("silent", ActionError, "some files could not be sent: no word of why"),
        ("chatty", InputError, "rsync says 'Hello"),
    ],
)
def test_what_rsync_says_is_told(stage: Stage, mode: str, kind: type[NatworkError], words: str) -> None:
    stage.images("final")
    stage.rsyncs(mode)

    async def act(transfer: RsyncSsh) -> None:
        with pytest.raises(kind, match=words):
            await _send(transfer)

    stage.play(act)


def test_a_cancelled_transfer_leaves_no_rsync(stage: Stage) -> None:
    stage.images("final")
    stage.rsyncs("hang")

    async def act(transfer: RsyncSsh) -> None:
        sending = asyncio.create_task(_send(transfer))
        while not stage.ran() or (stage.mode / "rsync").read_text():  # noqa: ASYNC110 - another process does
            await asyncio.sleep(0.001)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert await _send(transfer)  # the way is still good

    stage.play(act)


def test_a_volume_is_compared_by_content_and_without_the_machine_s_folders(stage: Stage) -> None:
    for name in ("data", "usr"):
        (stage.here.rootfs("web") / name).mkdir(parents=True)
        (stage.here.rootfs("web") / name / "file").write_bytes(name.encode())

    async def act(transfer: RsyncSsh) -> None:
        sent = await transfer.send_volume("web", target="node-1", key="key")
        assert sent.size_bytes == 4  # data/file
        assert sent.digest == digest(stage.there.rootfs("web"), rsync_ssh.MACHINES)[1]
        await transfer.send_volume("web", target="node-1", key="key")

    stage.play(act)
    for line in stage.ran():
        assert {"--checksum", "--delete", "--xattrs", "--exclude=/usr/*", "--exclude=/proc/*"} <= set(line.split())
        assert "--acls" not in line


def test_a_large_volume_is_hashed_when_rsync_has_ended(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rsync_ssh, "_EARLY_BYTES", 0)
    (stage.here.rootfs("web") / "data").mkdir(parents=True)
    (stage.here.rootfs("web") / "data/file").write_bytes(b"much")

    async def act(transfer: RsyncSsh) -> None:
        assert (await transfer.send_volume("web", target="node-1", key="key")).sent_bytes == 1000

    stage.play(act)


def test_a_volume_that_is_written_to_is_not_compared(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the freeze; afterwards the same difference is an error."""
    (stage.here.rootfs("web") / "data").mkdir(parents=True)
    (stage.here.rootfs("web") / "pages-1.img").write_bytes(b"written on")
    states = iter([False, True])
    monkeypatch.setattr(rsync_ssh, "stands_still", lambda *_: next(states))
    stage.rsyncs("corrupt", "corrupt", "corrupt")

    async def act(transfer: RsyncSsh) -> None:
        sent = await transfer.send_volume("web", target="node-1", key="key")
        assert sent.digest == digest(stage.there.rootfs("web"))[1]
        with pytest.raises(VerificationError):
            await transfer.send_volume("web", target="node-1", key="key")

    stage.play(act)


@pytest.mark.parametrize(
    ("file", "frozen", "thawed"), [("freezer.state", "FROZEN", "THAWED"), ("cgroup.freeze", "1", "0")]
)
def test_the_freezer_says_whether_a_container_writes(
    stage: Stage, tmp_path: Path, file: str, frozen: str, thawed: str
) -> None:
    assert rsync_ssh.stands_still(stage.here, "web", tmp_path)
    folder = tmp_path / ("freezer" if file == "freezer.state" else "") / stage.here.cgroup("web").lstrip("/")
    folder.mkdir(parents=True)
    for text, still in ((frozen, True), (thawed, False)):
        (folder / file).write_text(f"{text}\n")
        assert rsync_ssh.stands_still(stage.here, "web", tmp_path) is still


def test_tunnels_are_kept_by_key_and_taken_back(stage: Stage) -> None:
    async def act(transfer: RsyncSsh) -> None:
        for _ in range(2):
            offered = await transfer.open_page_tunnel(target="node-1", key="key", port=9000)
            assert (offered.host, offered.port) == ("127.0.0.1", 43210)
        await transfer.open_page_tunnel(target="node-1", key="key", port=9001)
        await transfer.close(target="node-1", key="key")
        await transfer.close(target="node-1", key="key")
        with pytest.raises(UsageError, match="port = 0"):
            await transfer.open_page_tunnel(target="node-1", key="key", port=0)
        (stage.mode / "ssh").write_text("odd")
        with pytest.raises(InputError, match="names no forwarded port"):
            await transfer.open_page_tunnel(target="node-1", key="other", port=9000)
        (stage.mode / "ssh").write_text("refuse")
        with pytest.raises(ActionError, match="Host key verification failed"):
            await transfer.open_page_tunnel(target="node-1", key="other", port=9000)

    stage.play(act)
    words = [line.split() for line in (stage.mode / "forwards").read_text().splitlines()]
    asked = [(line[line.index("-O") + 1], line[line.index("-R") + 1]) for line in words]
    spec = "127.0.0.1:0:127.0.0.1:"
    assert asked[:4] == [("forward", f"{spec}9000"), ("cancel", f"{spec}9000"), ("forward", f"{spec}9001"),
                         ("cancel", f"{spec}9001")]  # fmt: skip


def test_a_refused_connection_is_told_in_ssh_s_words(stage: Stage) -> None:
    (stage.mode / "ssh").write_text("refuse")

    async def act(transfer: RsyncSsh) -> None:
        with pytest.raises(ActionError, match="from node-0 to node-1: Host key verification failed"):
            await transfer.open("node-1")
        (stage.mode / "ssh").write_text("")
        await transfer.open("node-1")

    stage.play(act)


def test_a_mute_or_garbled_node_is_given_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_way, "OPEN_S", 0.2)
    monkeypatch.setattr(ssh_way, "END_S", 0.05)

    async def act(transfer: RsyncSsh) -> None:
        (stage.mode / "ssh").write_text("mute")
        with pytest.raises(TimedOutError, match="node-1 does not answer node-0"):
            await transfer.open("node-1")
        (stage.mode / "ssh").write_text("garbled")
        with pytest.raises(ActionError, match="speaks no JSON"):
            await transfer.open("node-1")

    stage.play(act)


def test_a_cut_way_is_opened_again(stage: Stage) -> None:
    stage.images("final")

    async def act(transfer: RsyncSsh) -> None:
        first = await transfer.open("node-1")
        way = transfer._ways["node-1"]
        assert way._master is not None
        way._master.kill()
        await asyncio.wait([way._reader])  # type: ignore[list-item]
        with pytest.raises(ActionError, match="there is no way to node-1"):
            await way.ask("digest", folder="x")
        await _send(transfer)
        assert await transfer.open("node-1") is not first

    stage.play(act)


def test_another_event_loop_gets_a_way_of_its_own(stage: Stage) -> None:
    """As when two commands of one process each run their own loop."""
    stage.images("final")
    transfer = RsyncSsh(stage.here, {"node-1": stage.there}, stage.tools)

    async def once() -> None:
        await _send(transfer)
        await transfer.shut()

    asyncio.run(once())
    asyncio.run(once())


def test_refusals(stage: Stage) -> None:
    async def act(transfer: RsyncSsh) -> None:
        with pytest.raises(NotFoundError, match="node-0 knows no node 'node-9'"):
            await transfer.open("node-9")
        with pytest.raises(NotFoundError, match="is not there to be sent"):
            await _send(transfer)
        for name in ("../x", "a b", "-n", ""):
            with pytest.raises(UsageError, match="is not a name"):
                await _send(transfer, name)
        way = await transfer._way("node-1")
        for what, folder in (
            ("digest", "/etc"),
            ("digest", str(stage.there.images)),
            ("eat", str(stage.there.images / "x")),
        ):
            with pytest.raises(ActionError, match=r"not below|no such request"):
                await way.ask(what, folder=folder)
        with pytest.raises(InputError, match="answers without a digest"):
            way.size_and_digest({"size": "much"})
        await transfer.close(target="node-9", key="key")

    stage.play(act)
    with pytest.raises(UsageError, match="bwlimit_bytes_per_s = -1"):
        RsyncSsh(stage.here, {}, stage.tools, bwlimit_bytes_per_s=-1)


def test_a_machine_without_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_way.shutil, "which", lambda name, path: None)
    with pytest.raises(PreconditionError, match="no python3 in /usr/bin"):
        ssh_way.system_python()


def test_a_program_that_takes_too_long_is_killed() -> None:
    with pytest.raises(TimedOutError, match=r"sleep did not end within 0\.01 s"):
        asyncio.run(ssh_way.run(["/bin/sleep", "60"], {}, 0.01))


def _tree(folder: Path) -> Path:
    (folder / "d").mkdir(parents=True)
    (folder / "d/f").write_bytes(b"content")
    (folder / "l").symlink_to("d/f")
    (folder / "usr").mkdir()
    return folder


def _chmod(tree: Path) -> None:
    (tree / "d/f").chmod(0o711)


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: (tree / "d/f").write_bytes(b"kontent"),
        lambda tree: (tree / "d/f").rename(tree / "d/g"),
        lambda tree: (tree / "d/new").touch(),
        lambda tree: (tree / "d/empty").mkdir(),
        lambda tree: ((tree / "l").unlink(), (tree / "l").symlink_to("d/x")),
        lambda tree: os.mkfifo(tree / "pipe"),
        _chmod,
    ],
)
def test_every_change_changes_the_digest(tmp_path: Path, change: Callable[[Path], object]) -> None:
    one, other = _tree(tmp_path / "one"), _tree(tmp_path / "other")
    assert digest(one) == digest(other)
    change(other)
    assert digest(one)[1] != digest(other)[1]


def test_times_and_skipped_folders_do_not_count(tmp_path: Path) -> None:
    one, other = _tree(tmp_path / "one"), _tree(tmp_path / "other")
    os.utime(other / "d/f", (1, 1))
    (other / "usr/x").write_bytes(b"the machine's")
    assert digest(one, ("usr",)) == digest(other, ("usr",)) == (7, digest(one)[1])
    assert digest(one) != digest(other)


def test_large_files_are_hashed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "_PIECE", 100)
    (tmp_path / "f").write_bytes(bytes(range(256)))
    before = digest(tmp_path)
    assert before[0] == 256
    for place in (0, 99, 100, 255):
        data = bytearray(range(256))
        data[place] ^= 1
        (tmp_path / "f").write_bytes(data)
        assert digest(tmp_path)[1] != before[1]


def test_a_file_that_shrinks_while_it_is_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"short")
    with pytest.raises(OSError, match="changed while it was read"):
        arrival._piece(str(tmp_path / "f"), 0, 100)


def test_the_far_end_ends_at_what_is_no_request(tmp_path: Path) -> None:
    program = [sys.executable, "-I", "-S", arrival.__file__, str(tmp_path)]
    for sent in (b"what?\n", b"[]\n", b'{"id": 1}\n', b"x" * 70_000, b""):
        ended = subprocess.run(program, input=sent, capture_output=True, timeout=20, check=False)
        assert json.loads(ended.stdout.splitlines()[0]) == {"id": 0}
        assert b"Traceback" not in ended.stderr


def _served(roots: list[Path], *requests: dict[str, object], raw: bytes = b"") -> dict[int, dict[str, object]]:
    import io

    sent = io.BytesIO(b"".join(json.dumps(one).encode() + b"\n" for one in requests) + raw)
    answers = io.BytesIO()
    arrival.Arrivals(roots, sent, answers).serve()
    said = [json.loads(line) for line in answers.getvalue().splitlines()]
    return {one["id"]: one for one in said}


def test_requests_in_one_process(tmp_path: Path) -> None:
    tree = _tree(tmp_path / "tree")
    size, name = digest(tree)
    said = _served(
        [tmp_path],
        {"id": 1, "do": "digest", "folder": str(tree)},
        {"id": 2, "do": "make", "folder": str(tmp_path / "a/b")},
        {"id": 3, "do": "await", "folder": str(tree), "size": size, "digest": name},
        {"id": 4, "do": "await", "folder": str(tree), "size": 1, "digest": name},
        {"id": 5, "do": "settle", "of": 4},
        {"id": 6, "do": "digest", "folder": str(tmp_path / "none")},
        {"id": 7, "do": "take", "bytes": 3},
        raw=b"xyz",
    )
    assert said[1] == {"id": 1, "size": size, "digest": name}
    assert said[3] == {"id": 3, "size": size, "digest": name}
    assert said[4]["digest"] == name
    assert "FileNotFoundError" in str(said[6]["error"])
    assert said[7] == {"id": 7}
    assert (tmp_path / "a/b").is_dir()
