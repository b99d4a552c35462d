"""What the CPU backend finds out about its machine: the real one, and made-up trees of /proc."""

import os
from pathlib import Path

import numpy as np
import psutil
import pytest

from infercore_cpu import host

MEBIBYTE = 2**20
EPYC = """processor\t: 0
model name\t: AMD EPYC 7B13 64-Core Processor\u0020
flags\t\t: fpu sse4_2 avx2 avx512_bf16
processor\t: 1
model name\t: another
flags\t\t: fpu
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16 asimdhp\n"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty machine, whose files a test writes below `proc` and `cgroup`."""
    monkeypatch.setattr(host, "PROC", tmp_path / "proc")
    monkeypatch.setattr(host, "CGROUP", tmp_path / "cgroup")
    return tmp_path


def write(root: Path, files: dict[str, object]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def test_the_real_machine_agrees_with_psutil() -> None:
    assert 1 <= host.cpu_count() <= len(psutil.Process().cpu_affinity())
    assert 0 < host.available_memory() <= psutil.virtual_memory().total
    assert host.cpu_name()
    assert 0 < host.private_memory() <= psutil.Process().memory_info().rss


def test_private_memory_and_its_peak_follow_what_is_taken() -> None:
    host.peak_private_memory()
    before = host.private_memory()
    taken = np.ones(64 * MEBIBYTE, np.uint8)
    grown = host.private_memory()
    assert grown - before > 56 * MEBIBYTE
    del taken
    assert host.peak_private_memory() >= grown - 8 * MEBIBYTE
    if os.access("/proc/self/clear_refs", os.W_OK):
        assert host.peak_private_memory() < grown - 48 * MEBIBYTE


def test_the_cpu_is_named_as_the_kernel_does(machine: Path) -> None:
    assert host.cpu_name() == "unknown CPU"
    assert host.cpu_flags() == frozenset()
    write(machine, {"proc/cpuinfo": EPYC})
    assert host.cpu_name() == "AMD EPYC 7B13 64-Core Processor"
    assert host.cpu_flags() == {"fpu", "sse4_2", "avx2", "avx512_bf16"}
    write(machine, {"proc/cpuinfo": ARM})
    assert host.cpu_name() == "unknown CPU"
    assert "bf16" in host.cpu_flags()


@pytest.mark.parametrize(
    ("quota", "count"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("6400000 100000", 8),
    ],
)
def test_a_containers_quota_cuts_the_threads(
    monkeypatch: pytest.MonkeyPatch, machine: Path, quota: str, count: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    write(machine, {"proc/self/cgroup": "0::/", "cgroup/cpu.max": quota})
    assert host.cpu_count() == count


def test_affinity_cuts_the_threads(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert host.cpu_count() == 2


def test_the_tightest_of_the_groups_above_counts(
    monkeypatch: pytest.MonkeyPatch, machine: Path
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    write(
        machine,
        {
            "proc/meminfo": f"MemTotal: {2**20} kB\nMemAvailable:   {2**19} kB",
            "proc/self/cgroup": "0::/pod/box",
            "cgroup/pod/cpu.max": "300000 100000",
            "cgroup/pod/box/cpu.max": "max 100000",
            "cgroup/pod/memory.max": 200 * MEBIBYTE,
            "cgroup/pod/memory.current": 50 * MEBIBYTE,
            "cgroup/pod/box/memory.max": "max",
            "cgroup/pod/box/memory.current": 40 * MEBIBYTE,
        },
    )
    assert host.cpu_count() == 3
    assert host.available_memory() == 150 * MEBIBYTE


def test_version_1_groups_limit_memory_too(machine: Path) -> None:
    write(
        machine,
        {
            "proc/meminfo": f"MemAvailable: {2**19} kB",
            "proc/self/cgroup": "12:cpu,cpuacct:/box\n4:memory:/box",
            "cgroup/memory/box/memory.limit_in_bytes": 100 * MEBIBYTE,
            "cgroup/memory/box/memory.usage_in_bytes": 30 * MEBIBYTE,
        },
    )
    assert host.available_memory() == 70 * MEBIBYTE


def test_a_group_over_its_limit_leaves_nothing(machine: Path) -> None:
    write(
        machine,
        {
            "proc/meminfo": f"MemAvailable: {2**19} kB",
            "proc/self/cgroup": "0::/",
            "cgroup/memory.max": MEBIBYTE,
            "cgroup/memory.current": 2 * MEBIBYTE,
        },
    )
    assert host.available_memory() == 0


def test_a_machine_without_groups_has_what_the_kernel_says(machine: Path) -> None:
    write(machine, {"proc/meminfo": "MemAvailable: 1024 kB"})
    assert host.available_memory() == MEBIBYTE


def test_private_memory_counts_no_pages_of_files(machine: Path) -> None:
    status = "VmHWM:\t 900 kB\nRssAnon:\t 500 kB\nRssFile:\t 200 kB\nRssShmem:\t 100 kB"
    write(machine, {"proc/self/status": status})
    assert host.private_memory() == 500 * 1024
    assert host.peak_private_memory() == 600 * 1024
    assert (machine / "proc/self/clear_refs").read_text() == host.CLEAR_PEAK
