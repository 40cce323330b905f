"""A container's network namespace, as its runtime uses it: closed to packets while nobody may be served, and a port.

From the moment that CRIU reads a container's sockets until the container runs again, its kernel must not accept a byte
for them: what it acknowledges then is lost. CRIU's own lock ends with the dump, although the frozen container and its
sockets stay; so the namespace, which is the container's alone, gets a rule of ours that drops all IPv4 packets in and
out. CRIU is told not to lock (`network-lock skip`), which also saves two programs per dump; its chain is removed all
the same wherever a CRIU with other settings has left one. Address resolution is not filtered.

Adding rules takes 3 ms, removing them 15 ms (the kernel waits for a grace period): closing lies in the downtime,
opening only on the way back.

    network = ContainerNetwork("nw3f9a-node-0-web", tools, runner, env)
    await network.close()
    await network.open()
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

from natwork_ray.adapters.network_namespace import inside
from natwork_ray.adapters.subprocesses import Runner
from natwork_ray.adapters.testbed_network import NETNS
from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.errors import ActionError, NotFoundError

CHAIN = "NATWORK"
_TIMEOUT_S = 10.0
_CLOSE = f"*filter\n:{CHAIN} - [0:0]\n-A {CHAIN} -j DROP\n-I INPUT -j {CHAIN}\n-I OUTPUT -j {CHAIN}\nCOMMIT\n"


class ContainerNetwork:
    """The packet filter of one container's namespace."""

    def __init__(self, netns: str, tools: Toolchain, runner: Runner, env: Mapping[str, str]) -> None:
        self.path = NETNS / netns
        self._enter = [str(tools.nsenter), f"--net={self.path}", "--", str(tools.iptables_restore), "--noflush"]
        self._save = [*self._enter[:3], str(tools.iptables_restore.with_name("iptables-save")), "-t", "filter"]
        self._runner = runner
        self._env = env

    def must_exist(self) -> None:
        """Raises NotFoundError where the bridge has not made the namespace."""
        if not self.path.exists():
            raise NotFoundError(f"there is no network namespace {self.path.name}", hint="prepare the address first")

    async def close(self) -> None:
        """Drop everything. Done twice, it is closed as well; `open` undoes both.

        Raises:
            ActionError: the packet filter refused.
        """
        await self._restore(_CLOSE)

    async def open(self) -> None:
        """Undo `close`, and what a killed CRIU left of its own lock. Harmless when nothing is closed, or gone.

        Raises:
            ActionError: the packet filter refused.
        """
        if not self.path.exists():
            return
        done = await self._runner.run(self._save, env=self._env, timeout_s=_TIMEOUT_S)
        if done.status != 0:
            raise ActionError(f"iptables-save in {self.path.name}: {_last(done.text)}", hint="see natwork doctor")
        rules = removal(done.text)
        if rules:
            await self._restore(rules)

    async def forget_connections(self) -> None:
        """Have the kernel drop the TCP sockets that processes have left here when they died; to be called while closed.

        It would go on saying goodbye for them, and a restore could not take their addresses. Where the kernel cannot be
        told (CONFIG_INET_DIAG_DESTROY), nothing happens.
        """
        argv = [*self._enter[:3], "ss", "--kill", "--tcp", "--all", "--no-header"]
        await self._runner.run(argv, env=self._env, timeout_s=_TIMEOUT_S, quiet=True)

    async def _restore(self, rules: str) -> None:
        self.must_exist()
        done = await self._runner.run(self._enter, env=self._env, timeout_s=_TIMEOUT_S, stdin=rules.encode())
        if done.status != 0:
            raise ActionError(f"iptables-restore in {self.path.name}: {_last(done.text)}", hint="see natwork doctor")


def removal(saved: str) -> str:
    """What takes our chain and CRIU's out of a filter table as `iptables-save` prints it; empty when neither is there.

    >>> removal("*filter\\n:INPUT ACCEPT [0:0]\\n:NATWORK - [0:0]\\n-A INPUT -j NATWORK\\n-A NATWORK -j DROP\\nCOMMIT")
    '*filter\\n-D INPUT -j NATWORK\\n-F NATWORK\\n-X NATWORK\\nCOMMIT\\n'
    """
    lines = saved.splitlines()
    chains = [chain for chain in (CHAIN, "CRIU") if any(line.startswith(f":{chain} ") for line in lines)]
    jumps = [f"-D{line[2:]}" for line in lines if line.startswith("-A ") and line.rpartition(" -j ")[2] in chains]
    ends = [f"-{what} {chain}" for chain in chains for what in "FX"]
    return "\n".join(["*filter", *jumps, *ends, "COMMIT", ""]) if chains else ""


def free_port(netns: Path) -> int:
    """A TCP port on the loopback of a network namespace that nobody listens on now.

    Raises:
        ActionError: there is no such namespace, or no such port.
    """

    def work() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    try:
        return inside(netns, work)
    except OSError as error:
        raise ActionError(f"no port in {netns.name}: {error}", hint="natwork testbed status") from error


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it failed without a word"
