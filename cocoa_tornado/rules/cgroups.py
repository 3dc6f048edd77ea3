"""What a Linux control group allows a process: CPU time, memory, and how often memory ran out. Pure.

Every function takes ``read``, which returns a file's text, or None if there is no such file. Both cgroup versions are
supported, and hybrid systems where each controller uses one of them::

    /proc/self/cgroup       4:memory:/pod/box (version 1)    0::/pod/box (version 2)
    /proc/self/mountinfo    where the hierarchy is mounted, and which part of it is visible there

A group is subject to its own limits and to those of all its ancestors: the lowest applies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

Read = Callable[[str], str | None]

UNLIMITED_BYTES: Final = 1 << 60
"""Version 1 has no value for "unlimited": it shows the largest multiple of a page."""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """:ivar version: 1 or 2
    :ivar folders: of the process's own group, then of its ancestors, as far as they are visible
    """

    version: int
    folders: tuple[str, ...]


def hierarchy_of(controller: str, read: Read) -> Hierarchy | None:
    """Where the files of a controller (``cpu``, ``memory``) are; None if there are none."""
    groups = dict(_groups(read("/proc/self/cgroup") or ""))
    for version, controllers, root, mount_point in _mounts(read("/proc/self/mountinfo") or ""):
        name = "" if version == 2 else controller
        if name not in groups or (version == 1 and controller not in controllers):
            continue
        if version == 2 and controller in groups:  # on a hybrid system the controller belongs to version 1
            continue
        return Hierarchy(version, tuple(_folders(groups[name], root, mount_point)))
    return None


def cpu_quota(read: Read) -> float | None:
    """The number of CPUs that the process may use, as a float; None: no quota."""
    found = hierarchy_of("cpu", read)
    if found is None:
        return None
    quotas = [_quota(found.version, folder, read) for folder in found.folders]
    return min((quota for quota in quotas if quota is not None), default=None)


def memory_limit(read: Read) -> int | None:
    """Bytes that the group's processes may use together, at most the machine's memory; None: unknown."""
    limits = [_total_memory(read)]
    found = hierarchy_of("memory", read)
    if found is not None:
        # Above memory.high the kernel throttles the group to a standstill, so it counts like memory.max.
        names = ("memory.max", "memory.high") if found.version == 2 else ("memory.limit_in_bytes",)
        limits += [_bytes(read(f"{folder}/{name}")) for folder in found.folders for name in names]
    return min((limit for limit in limits if limit is not None), default=None)


def oom_kills(read: Read) -> int:
    """How many processes of this group the kernel has killed for lack of memory. Only an increase is meaningful.

    If the group has no counter (the root group of version 2), the whole machine's count is used; before Linux 4.13, the
    number of times that the limit was hit.
    """
    found = hierarchy_of("memory", read)
    own = found.folders[0] if found is not None else ""
    names = ("memory.events", "memory.oom_control")
    texts = [*(read(f"{own}/{name}") for name in names if own), read("/proc/vmstat")]
    for text in texts[:-1]:
        count = _named("oom_kill", text)
        if count is not None:
            return count
    hit = read(f"{own}/memory.failcnt") if own else None
    if hit is not None and hit.strip().isdecimal():
        return int(hit)
    return _named("oom_kill", texts[-1]) or 0


def _groups(text: str) -> Iterator[tuple[str, str]]:
    """Each controller and its group; the name '' is version 2."""
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if separator:
            yield from [("", path)] if number == "0" else ((name, path) for name in controllers.split(","))


def _mounts(text: str) -> Iterator[tuple[int, tuple[str, ...], str, str]]:
    """Version, controllers, visible part, and mount point. See proc_pid_mountinfo(5)."""
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) >= 5 and len(kind) >= 3 and kind[0] in ("cgroup", "cgroup2"):
            version = 2 if kind[0] == "cgroup2" else 1
            yield version, tuple(kind[2].split(",")), _unescaped(fields[3]), _unescaped(fields[4])


def _folders(group: str, root: str, mount_point: str) -> Iterator[str]:
    """The group's folder and its ancestors' folders, up to the mount point."""
    # If the group is outside the visible part (a container without a namespace), use the mount point.
    is_visible = f"{group}/".startswith(f"{root.rstrip('/')}/") and ".." not in group.split("/")
    parts = [part for part in group[len(root.rstrip("/")) :].split("/") if part] if is_visible else []
    for count in range(len(parts), -1, -1):
        yield "/".join([mount_point, *parts[:count]])


def _quota(version: int, folder: str, read: Read) -> float | None:
    if version == 2:
        quota, _, period = (read(f"{folder}/cpu.max") or "").strip().partition(" ")
    else:
        quota = (read(f"{folder}/cpu.cfs_quota_us") or "").strip()
        period = (read(f"{folder}/cpu.cfs_period_us") or "").strip()
    if not (quota.isdecimal() and period.isdecimal() and int(quota) and int(period)):
        return None  # "max", -1, or no such file
    return int(quota) / int(period)


def _bytes(text: str | None) -> int | None:
    value = (text or "").strip()
    return int(value) if value.isdecimal() and int(value) < UNLIMITED_BYTES else None


def _total_memory(read: Read) -> int | None:
    found = re.search(r"^MemTotal:\s+(\d+) kB$", read("/proc/meminfo") or "", re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _named(name: str, text: str | None) -> int | None:
    """The number after a name, in a file with one name and number per line."""
    found = re.search(rf"^{name} (\d+)$", text or "", re.MULTILINE)
    return int(found[1]) if found else None


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)
