"""Where everything of a real testbed lies: one folder for the testbed, one for each of its nodes.

A node is a network namespace with an sshd, a runC root, bundles and images of its own; all nodes share one kernel.
Nothing of a testbed lies outside its folder but namespaces, bridge, cgroups and the images' tmpfs folder, and all of
these carry the testbed's id in their names, so that two testbeds on one machine never meet and `down` finds them all.
"""

from __future__ import annotations

from pathlib import Path

from natwork_ray.domain.values import value


@value
class NodeLayout:
    """One node of a testbed.

    Attributes:
        testbed: id of the testbed, for example `nw3f9a`: at most 6 characters, since interface names have 15.
        folder: everything of the node that lives on disk.
        images: checkpoints, on tmpfs; one folder per migration key, one below it per set.
        netns: name of the node's network namespace (its sshd listens there).
        address: the node's own IPv4 address on the bridge; ssh_port: its sshd.
        bridge: name of the bridge in the root namespace that all nodes and containers are attached to.
    """

    testbed: str
    name: str
    folder: Path
    images: Path
    netns: str
    address: str
    ssh_port: int
    bridge: str

    @property
    def runc_root(self) -> Path:
        """State folder of this node's runC (`runc --root`)."""
        return self.folder / "runc"

    @property
    def bundles(self) -> Path:
        """One bundle per container: config.json, spec.json and rootfs/."""
        return self.folder / "bundles"

    @property
    def ssh(self) -> Path:
        """Host key, client key, authorized_keys, known_hosts, sshd_config and control sockets."""
        return self.folder / "ssh"

    @property
    def journal(self) -> Path:
        """The node's `MigrationJournal`."""
        return self.folder / "journal"

    def bundle(self, container: str) -> Path:
        """The bundle of a container on this node."""
        return self.bundles / container

    def rootfs(self, container: str) -> Path:
        """The container's writable root file system on this node: what `send_volume` synchronises."""
        return self.bundle(container) / "rootfs"

    def image_set(self, key: str, images: str) -> Path:
        """Folder of one checkpoint."""
        return self.images / key.replace("/", "-") / images

    def container_netns(self, container: str) -> str:
        """Name of the container's network namespace on this node."""
        return f"{self.netns}-{container}"

    def cgroup(self, container: str) -> str:
        """cgroup path of the container on this node, as runC's `linux.cgroupsPath`."""
        return f"/{self.testbed}/{self.name}/{container}"
