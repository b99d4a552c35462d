"""A virtual environment per client version, made once and kept between runs.

They lie in the folder that the variable INFERCORE_CLIENT_ENVIRONMENTS names, by default in
`infercore/client-environments` of the user's cache. Each is named by what it holds, so that another
pin makes another environment, and nothing has to be cleaned by hand but what is old.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "INFERCORE_CLIENT_ENVIRONMENTS"


def cache_folder() -> Path:
    """Where the environments lie."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "infercore" / "client-environments"


def python_with(*requirements: str) -> Path:
    """The Python of an environment that has `requirements` installed.

    Raises CalledProcessError, with pip's own words on stderr, if they cannot be installed.
    """
    text = "\n".join((sys.version, *requirements))
    first = re.sub(r"\[.*\]", "", requirements[0]).replace("==", "-")
    name = f"{first}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    folder = cache_folder() / name
    whole = folder / "requirements.txt"
    with _locked(folder.with_name(f"{name}.lock")):
        if not whole.exists():  # written last, so what lacks it is half an environment
            shutil.rmtree(folder, ignore_errors=True)
            _install(folder, requirements)
            whole.write_text("\n".join((*requirements, "")))
    return folder / "bin" / "python"


def _install(folder: Path, requirements: tuple[str, ...]) -> None:
    venv.create(folder, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
    subprocess.run([*pip, "install", *quiet, *requirements], check=True)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold the lock: two test processes may want the same environment."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
