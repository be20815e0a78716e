"""Counts the processes that the kernel has killed for lack of memory.

The kernel sends SIGKILL, which looks like any other lost process to Ray. A container's control group has a count of its
own. Elsewhere, the count is of the machine.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

OWN_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
MACHINE = Path("/proc/vmstat")


def oom_kills() -> int:
    """Number of processes killed so far in the container of this process, or on its machine; 0 if unknown."""
    for path in (*_own_files(), MACHINE):
        with contextlib.suppress(OSError):
            if count := re.search(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE):
                return int(count[1])
    return 0


def _own_files() -> Iterator[Path]:
    """Files with the count of the own control group, of versions 1 and 2 of control groups."""
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, group = line.split(":", 2)
        if "memory" in controllers.split(","):
            root, name = GROUPS / "memory", "memory.oom_control"
        elif number == "0":
            root, name = GROUPS, "memory.events"
        else:
            continue
        # The path can be the host's, while the container sees its own group as the root.
        yield from (root / group.lstrip("/") / name, root / name)
