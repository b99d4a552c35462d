"""What the machine is: its CPU, its memory, and the limits that a container sets. Linux."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
# (limit, in use) of a cgroup, version 2 and 1
MEMORY_FILES = (
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)
CLEAR_PEAK = "5"  # proc(5), clear_refs: reset the peak of the resident set


def cpu_name() -> str:
    """As the kernel spells it, without trailing marks."""
    match = re.search(r"^model name\s*:\s*(.+)$", _read(PROC / "cpuinfo"), re.MULTILINE)
    return match[1].strip() if match else "unknown CPU"


def cpu_flags() -> frozenset[str]:
    """Instruction sets, by the kernel's names (x86 "flags", ARM "Features")."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _read(PROC / "cpuinfo"), re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()


def cpu_count() -> int:
    """CPUs that this process may use: its affinity, cut down by the container's quota."""
    count = len(os.sched_getaffinity(0))
    for folder in _cgroups():
        quota = _read(folder / "cpu.max").split()
        if len(quota) == 2 and quota[0] != "max":
            count = min(count, max(1, int(quota[0]) // int(quota[1])))
    return count


def available_memory() -> int:
    """Bytes that may still be taken: the machine's, or what the container leaves."""
    available = _bytes(PROC / "meminfo", "MemAvailable")
    for folder in _cgroups():
        for limit_file, used_file in MEMORY_FILES:
            limit, used = _read(folder / limit_file).strip(), _read(folder / used_file)
            if limit.isdigit() and used:
                available = min(available, int(limit) - int(used))
    return max(0, available)


def private_memory() -> int:
    """Bytes of this process that are not pages of files."""
    return _bytes(PROC / "self/status", "RssAnon")


def peak_private_memory() -> int:
    """The most that `private_memory` was since the last call."""
    status = PROC / "self/status"
    peak = _bytes(status, "VmHWM") - _bytes(status, "RssFile") - _bytes(status, "RssShmem")
    with suppress(OSError):  # where /proc is read-only the peak is the process's: never too low
        (PROC / "self/clear_refs").write_text(CLEAR_PEAK)
    return peak


def _cgroups() -> Iterator[Path]:
    """This process's cgroups and those above them, of version 2 and of version 1's memory."""
    for line in _read(PROC / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            folder = CGROUP / controllers
            yield folder
            for part in Path(path).parts[1:]:
                folder /= part
                yield folder


def _bytes(file: Path, key: str) -> int:
    match = re.search(rf"^{key}:\s*(\d+) kB$", _read(file), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _read(file: Path) -> str:
    """The file's text, nothing where this kernel has no such file."""
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""
