"""CPU time, memory and cores of processes and the machine, from Linux' /proc.

The functions named ``parse_`` take text and are pure.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE_KIB = resource.getpagesize() / 1024
SPARE_FILES = 300  # per process, for the broker's connections, libraries and temporary files


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores of the server, and those of the generator, the broker and the harness."""

    server: frozenset[int]
    load: frozenset[int]


def split(cores: frozenset[int]) -> Cores:
    """Assign one core to the server and the others to the load. A single core is shared."""
    server = frozenset({max(cores)})
    return Cores(server, (cores - server) or server)


@contextlib.contextmanager
def on_cores(cores: frozenset[int]) -> Iterator[None]:
    """Pin processes that are started within the context, with all their threads, to these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def ahead(pid: int) -> Iterator[bool]:
    """Let a process and its threads run before all ordinary ones on their cores; False where that is not permitted.

    A real-time policy, because a nice value may count only within the process's session (``sched_autogroup_enabled``).
    Threads that start meanwhile inherit it.
    """
    try:
        _schedule(pid, os.SCHED_RR, 1)
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        _schedule(pid, os.SCHED_OTHER, 0)


def _schedule(pid: int, policy: int, priority: int) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # the thread has just ended
            os.sched_setscheduler(int(task.name), policy, os.sched_param(priority))


def raise_file_limit() -> int:
    """Raise the limit of open files for this process and its children. Returns the devices one process can then
    hold."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard - SPARE_FILES


def cpu_s(pid: int) -> float:
    """The CPU time so far of a process and its running children, user and system, in seconds.

    Read from their CPU clocks, which count nanoseconds instead of ticks.
    """
    return sum(time.clock_gettime(~process << 3 | 2) for process in family(pid))


def family(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has just ended
            parents[int(folder.name)] = parse_parent((folder / "stat").read_text())
    found = [pid]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def parse_parent(stat: str) -> int:
    return int(stat.rpartition(")")[2].split()[1])


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory in KiB.

    :ivar user: of the processes, with a proportional share of shared pages (Pss)
    :ivar own: the private pages of it, which would be free if the processes ended
    :ivar kernel: of the whole machine: slabs, page tables, kernel stacks, and TCP buffers. It includes both ends of a
        loopback connection
    """

    user: float
    own: float
    kernel: float

    def __sub__(self, other: Memory) -> Memory:
        return Memory(self.user - other.user, self.own - other.own, self.kernel - other.kernel)


def memory(pid: int) -> Memory:
    user = own = 0.0
    for process in family(pid):
        fields = parse_kib(Path(f"/proc/{process}/smaps_rollup").read_text())
        user += fields["Pss"]
        own += fields["Private_Clean"] + fields["Private_Dirty"]
    machine = parse_kib(Path("/proc/meminfo").read_text())
    tcp = parse_tcp_pages(Path("/proc/net/sockstat").read_text()) * PAGE_KIB
    return Memory(user, own, machine["Slab"] + machine["PageTables"] + machine["KernelStack"] + tcp)


def parse_kib(text: str) -> dict[str, float]:
    """Lines like ``Pss:   434 kB``."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            found[name] = float(rest.split()[0])
    return found


def parse_tcp_pages(sockstat: str) -> int:
    for line in sockstat.splitlines():
        if line.startswith("TCP:"):
            fields = line.split()
            return int(fields[fields.index("mem") + 1])
    return 0


def waited_s() -> float:
    """For how long some process of the machine has been waiting for a processor so far, in seconds; 0.0: unknown."""
    try:
        return parse_pressure(Path("/proc/pressure/cpu").read_text())
    except OSError:
        return 0.0


def parse_pressure(text: str) -> float:
    """The total of a line like ``some avg10=1.53 avg60=0.87 avg300=0.45 total=126432``, which is in microseconds."""
    line = next((line for line in text.splitlines() if line.startswith("some ")), "total=0")
    return int(line.rpartition("total=")[2]) / 1e6


def idle_s(cores: frozenset[int]) -> float:
    """The total idle time of these cores so far, in seconds."""
    return parse_idle_ticks(Path("/proc/stat").read_text(), cores) / os.sysconf("SC_CLK_TCK")


def parse_idle_ticks(stat: str, cores: frozenset[int]) -> int:
    wanted = {f"cpu{core}" for core in cores}
    return sum(int(fields[4]) + int(fields[5]) for line in stat.splitlines() if (fields := line.split())[0] in wanted)


def describe_machine(cores: Cores) -> dict[str, str]:
    model = "unknown processor"
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "processor": model,
        "cores": f"{len(cores.server)} for the server, {len(cores.load - cores.server) or 'none'} for load and broker",
        "Linux": platform.release(),
        "Python": platform.python_version(),
    }
