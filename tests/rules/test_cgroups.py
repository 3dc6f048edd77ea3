"""The limits of a control group, from the kernel's files in containers and services."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.cgroups import Hierarchy, cpu_quota, hierarchy_of, memory_limit, oom_kills

GIB = 1 << 30
MEMINFO = {"/proc/meminfo": "MemTotal:       16777216 kB\nMemFree:         1000 kB\n"}  # 16 GiB

V2 = MEMINFO | {
    "/proc/self/cgroup": "0::/system.slice/cocoa.service\n",
    "/proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
}
V2_CONTAINER = MEMINFO | {
    "/proc/self/cgroup": "0::/\n",
    "/proc/self/mountinfo": "612 611 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n",
}
V1 = MEMINFO | {
    "/proc/self/cgroup": "4:memory:/pod/box\n3:cpuset:/\n2:cpu,cpuacct:/pod/box\n1:name=systemd:/pod\n",
    "/proc/self/mountinfo": (
        "23 1 8:1 / / rw - ext4 /dev/sda rw\n"
        "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:3 - cgroup cgroup rw,cpu,cpuacct\n"
        "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    ),
}
V1_CONTAINER = MEMINFO | {
    # Without a namespace the group's path is the host's, and the mount shows the container's part alone.
    "/proc/self/cgroup": "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n",
    "/proc/self/mountinfo": (
        "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
        "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    ),
}
HYBRID = MEMINFO | {
    "/proc/self/cgroup": "4:memory:/box\n1:name=systemd:/box\n0::/box\n",
    "/proc/self/mountinfo": (
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    ),
}


@pytest.mark.parametrize(
    ("texts", "controller", "found"),
    [
        (
            V2,
            "memory",
            Hierarchy(
                2,
                ("/sys/fs/cgroup/system.slice/cocoa.service", "/sys/fs/cgroup/system.slice", "/sys/fs/cgroup"),
            ),
        ),
        (V2_CONTAINER, "cpu", Hierarchy(2, ("/sys/fs/cgroup",))),
        (
            V1,
            "cpu",
            Hierarchy(
                1,
                (
                    "/sys/fs/cgroup/cpu,cpuacct/pod/box",
                    "/sys/fs/cgroup/cpu,cpuacct/pod",
                    "/sys/fs/cgroup/cpu,cpuacct",
                ),
            ),
        ),
        (V1_CONTAINER, "memory", Hierarchy(1, ("/sys/fs/cgroup/memory",))),
        (HYBRID, "memory", Hierarchy(1, ("/sys/fs/cgroup/memory/box", "/sys/fs/cgroup/memory"))),
        (HYBRID, "cpu", Hierarchy(2, ("/sys/fs/cgroup/unified/box", "/sys/fs/cgroup/unified"))),
        (MEMINFO, "memory", None),
        (
            V2_CONTAINER | {"/proc/self/cgroup": "0::/../other\n"},  # the process is outside of its own namespace
            "memory",
            Hierarchy(2, ("/sys/fs/cgroup",)),
        ),
        (
            {
                "/proc/self/cgroup": "0::/a:b\n",
                "/proc/self/mountinfo": "1 1 0:1 / /with\\040blank rw - cgroup2 cgroup2 rw\n",
            },
            "memory",
            Hierarchy(2, ("/with blank/a:b", "/with blank")),
        ),
    ],
)
def test_a_group_is_found_wherever_its_hierarchy_is_mounted(
    texts: dict[str, str], controller: str, found: Hierarchy | None
) -> None:
    assert hierarchy_of(controller, texts.get) == found


SERVICE, SLICE, TOP = ("/sys/fs/cgroup/system.slice/cocoa.service", "/sys/fs/cgroup/system.slice", "/sys/fs/cgroup")


@pytest.mark.parametrize(
    ("texts", "quota"),
    [
        (V2, None),
        (V2 | {f"{SERVICE}/cpu.max": "max 100000\n"}, None),
        (V2 | {f"{SERVICE}/cpu.max": "150000 100000\n"}, 1.5),
        (V2 | {f"{SERVICE}/cpu.max": "max 100000\n", f"{SLICE}/cpu.max": "200000 100000\n"}, 2.0),
        (V2 | {f"{SERVICE}/cpu.max": "400000 100000\n", f"{SLICE}/cpu.max": "200000 100000\n"}, 2.0),
        (V2_CONTAINER | {f"{TOP}/cpu.max": "50000 100000\n"}, 0.5),
        (
            V1_CONTAINER
            | {
                f"{TOP}/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
                f"{TOP}/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (
            V1
            | {
                f"{TOP}/cpu,cpuacct/pod/box/cpu.cfs_quota_us": "-1\n",
                f"{TOP}/cpu,cpuacct/pod/box/cpu.cfs_period_us": "100000\n",
                f"{TOP}/cpu,cpuacct/pod/cpu.cfs_quota_us": "100000\n",
                f"{TOP}/cpu,cpuacct/pod/cpu.cfs_period_us": "50000\n",
            },
            2.0,
        ),
        (V2 | {f"{SERVICE}/cpu.max": "rubbish"}, None),
    ],
)
def test_the_quota_is_the_lowest_of_the_group_and_those_around_it(texts: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(texts.get) == quota


@pytest.mark.parametrize(
    ("texts", "limit"),
    [
        ({}, None),
        (MEMINFO, 16 * GIB),
        (V2 | {f"{SERVICE}/memory.max": "max\n"}, 16 * GIB),
        (V2 | {f"{SERVICE}/memory.max": f"{GIB}\n"}, GIB),
        (V2 | {f"{SERVICE}/memory.max": f"{2 * GIB}\n", f"{SERVICE}/memory.high": f"{GIB}\n"}, GIB),
        (V2 | {f"{SERVICE}/memory.max": f"{4 * GIB}\n", f"{SLICE}/memory.max": f"{3 * GIB}\n"}, 3 * GIB),
        (V2 | {f"{SERVICE}/memory.max": f"{64 * GIB}\n"}, 16 * GIB),
        (V1_CONTAINER | {f"{TOP}/memory/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
        (V1_CONTAINER | {f"{TOP}/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 16 * GIB),
        (V1 | {f"{TOP}/memory/pod/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
        (HYBRID | {f"{TOP}/memory/box/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
    ],
)
def test_the_memory_is_the_lowest_limit_and_never_more_than_the_machine_has(
    texts: dict[str, str], limit: int | None
) -> None:
    assert memory_limit(texts.get) == limit


EVENTS = "low 0\nhigh 12\nmax 30\noom 8\noom_kill 7\noom_group_kill 0\n"
VMSTAT = {"/proc/vmstat": "nr_free_pages 12\noom_kill 5\n"}


@pytest.mark.parametrize(
    ("texts", "kills"),
    [
        ({}, 0),
        (V2 | VMSTAT | {f"{SERVICE}/memory.events": EVENTS}, 7),
        (V2_CONTAINER | VMSTAT, 5),
        (V1 | VMSTAT | {f"{TOP}/memory/pod/box/memory.oom_control": "under_oom 0\noom_kill 3\n"}, 3),
        (
            V1
            | VMSTAT
            | {
                f"{TOP}/memory/pod/box/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n",
                f"{TOP}/memory/pod/box/memory.failcnt": "41\n",
            },
            41,
        ),
    ],
)
def test_oom_kills_are_read_from_whichever_counter_there_is(texts: dict[str, str], kills: int) -> None:
    assert oom_kills((VMSTAT | texts if texts else texts).get) == kills


LINES = st.lists(
    st.one_of(
        st.text(max_size=60),
        st.sampled_from([*V1["/proc/self/mountinfo"].splitlines(), *V1["/proc/self/cgroup"].splitlines(), "0::"]),
    ),
    max_size=6,
).map("\n".join)


@given(LINES, LINES, st.text(max_size=40))
def test_files_that_hold_something_else_limit_nothing(cgroup: str, mountinfo: str, text: str) -> None:
    def read(path: str) -> str | None:
        return {"/proc/self/cgroup": cgroup, "/proc/self/mountinfo": mountinfo}.get(path, text)

    for quota in (cpu_quota(read), memory_limit(read)):
        assert quota is None or quota >= 0
    assert oom_kills(read) >= 0
