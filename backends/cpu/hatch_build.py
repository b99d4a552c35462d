# ruff: noqa: INP001 (a script beside its project, in no package)
"""Compiles native/ into one shared library when the package is built or installed editable.

By hand, after a change of a C++ file: `python backends/cpu/hatch_build.py`. Where no compiler is
found the package is built without the library, and says so when it runs.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
SOURCES = ROOT / "native"
LIBRARY = ROOT / "src/infercore_cpu/libinfercore_cpu.so"
COMPILERS = ("c++", "g++", "clang++")

# No contraction: products are fused where the code says so, alike in every instance of a template.
# The warnings are about the compiler's own headers, and about vectors as arguments.
FLAGS = "-std=c++17 -O3 -fPIC -pthread -ffp-contract=off -fno-math-errno -Wall -Wextra"
QUIET = "-Wno-maybe-uninitialized -Wno-psabi -Wno-ignored-attributes"
AVX2 = "-mavx2 -mfma -mf16c"
AVX512 = f"{AVX2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512bf16"
X86 = {"avx2": AVX2, "avx512": AVX512}
ONCE = (
    "pool.cpp",
    "crew.cpp",
    "dispatch.cpp",
)  # and *_api.cpp; every other once per instruction set


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Puts the library into the wheel, which is then one platform's."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        del version
        if self.target_name != "wheel" or not build():
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform()}"
        build_data["artifacts"].append(f"/{LIBRARY.relative_to(ROOT)}")


def build() -> bool:
    """Compile, if a source is newer than the library. False where there is no compiler."""
    compiler = _compiler()
    if compiler is None:
        LIBRARY.unlink(missing_ok=True)  # it would not be these sources'
        print(f"no C++ compiler ({', '.join(COMPILERS)}): no native kernels", file=sys.stderr)
        return False
    newest = max(path.stat().st_mtime for path in (*SOURCES.iterdir(), Path(__file__)))
    if not LIBRARY.exists() or LIBRARY.stat().st_mtime < newest:
        with tempfile.TemporaryDirectory() as folder:
            _compile(compiler, Path(folder))
        os.utime(LIBRARY, (newest, newest))  # older than a source that was changed meanwhile
    return True


def _compiler() -> list[str] | None:
    """The one that CXX names, or the first that is installed."""
    if named := os.environ.get("CXX"):
        return shlex.split(named)
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    return [found] if found else None


def _compile(compiler: list[str], folder: Path) -> None:
    sets = {"portable": "", **_supported(compiler)}
    known = [f"-DINFERCORE_HAS_{name.upper()}" for name in sets]
    base = [*compiler, *FLAGS.split(), *QUIET.split(), *known]
    jobs = []
    for source in sorted(SOURCES.glob("*.cpp")):
        if source.name in ONCE or source.stem.endswith("_api"):
            jobs.append([*base, "-c", str(source), "-o", str(folder / f"{source.stem}.o")])
            continue
        for name, flags in sets.items():
            out = folder / f"{source.stem}.{name}.o"
            isa = [f"-DINFERCORE_ISA={name}", *flags.split()]
            jobs.append([*base, *isa, "-c", str(source), "-o", str(out)])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, jobs))
    made = folder / LIBRARY.name
    objects = sorted(str(path) for path in folder.glob("*.o"))
    _run([*compiler, "-shared", "-pthread", *objects, "-o", str(made)])
    # moved into place, so that a process that has the old one open keeps it
    shutil.copy2(made, LIBRARY.with_suffix(".new"))
    LIBRARY.with_suffix(".new").replace(LIBRARY)


def _supported(compiler: list[str]) -> dict[str, str]:
    """The instruction sets of this architecture that the compiler knows."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return {}
    check = [*compiler, "-fsyntax-only", "-x", "c++", os.devnull]
    knows = {
        name: subprocess.run([*check, *flags.split()], capture_output=True, check=False)
        for name, flags in X86.items()
    }
    return {name: X86[name] for name, done in knows.items() if done.returncode == 0}


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.stderr:
        print(done.stderr, file=sys.stderr)
    if done.returncode:
        raise RuntimeError(f"compiling the native kernels failed: {shlex.join(command)}")


def _platform() -> str:
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


if __name__ == "__main__":
    sys.exit(not build())
