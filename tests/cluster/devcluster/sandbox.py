"""A sandbox for a node: separate namespaces for processes, mounts and network.

Everything a node starts, mounts and routes is inside. When the process that holds the namespaces ends, and the kernel
ends it with us, the kernel ends all of it: containers, mounts, bridge, iptables rules. Nothing needs to be undone.
"""

import fcntl
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from devcluster.process import Process, ProcessError, wait_until

# Pods use 198.18.0.0/17; the addresses of the veth pair between this machine and the node are outside of it.
PODS = "198.18.0.0/17"
BRIDGE = "198.18.0.1"
OUTSIDE, INSIDE = "198.18.255.1", "198.18.255.2"
_CABLE = "dreambooth0"
# Folders that containerd, kubelet and CNI write to besides the configured ones.
_HIDDEN = ("/run", "/var/lib/kubelet", "/var/lib/cni", "/var/log")


class Sandbox:
    """The sandbox. Its addresses are fixed, so only one can exist on a machine: a second one waits for the first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._turn = (Path(tempfile.gettempdir()) / "dreambooth-node.lock").open("w")
        # bash reaps orphaned processes, as the first process of a PID namespace must.
        hold = ["bash", "-c", "sleep infinity & wait"]
        flags = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._holder = Process(folder, "sandbox", ["unshare", *flags, *hold])
        self._pid = 0

    def start(self) -> None:
        """Create the namespaces and the veth pair."""
        fcntl.flock(self._turn, fcntl.LOCK_EX)
        self._holder.start()
        wait_until("sandbox", self._has_child, process=self._holder)
        for path in _HIDDEN:
            self.run("bash", "-c", f"mkdir -p {path} && mount -t tmpfs tmpfs {path}")
        # The kernel may still be removing an earlier one.
        subprocess.run(["ip", "link", "del", _CABLE], capture_output=True, check=False)
        _ip("link", "add", _CABLE, "type", "veth", "peer", "name", "eth0", "netns", str(self._pid))
        _ip("addr", "add", f"{OUTSIDE}/30", "dev", _CABLE)
        _ip("link", "set", _CABLE, "up")
        self.run("bash", "-ec", _INSIDE)
        _ip("route", "replace", PODS, "via", INSIDE)

    def stop(self) -> None:
        """Stop all processes in it."""
        self._holder.kill()
        self._turn.close()

    def process(self, name: str, command: Sequence[str]) -> Process:
        """A process in the sandbox, not started yet."""
        return Process(self._folder, name, [*self._enter(), *command])

    def run(self, *command: str) -> str:
        """Run a program in the sandbox and return its output. Raises ProcessError with its error output if it fails."""
        return _run([*self._enter(), *command])

    def _enter(self) -> list[str]:
        return ["nsenter", f"--target={self._pid}", "--net", "--mount", "--pid", "--"]

    def _has_child(self) -> bool:
        holder = self._holder.pid
        children = Path(f"/proc/{holder}/task/{holder}/children").read_text().split()
        self._pid = int(children[0]) if children else 0
        return bool(children)


_INSIDE = f"""
ip link set lo up
ip addr add {INSIDE}/30 dev eth0
ip link set eth0 up
ip route add default via {OUTSIDE}
ip link add cni0 type bridge
ip addr add {BRIDGE}/17 dev cni0
ip link set cni0 up
sysctl -qw net.ipv4.ip_forward=1
mount --make-rshared /
"""


def _ip(*arguments: str) -> None:
    _run(["ip", *arguments])


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProcessError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
