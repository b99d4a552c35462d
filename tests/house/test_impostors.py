"""The documented install commands take our wheels, beside higher versions of the same names.

Everything that ours need is stood in for by empty wheels, so that pip resolves the whole tree here,
without a network. The impostors lie in an index, where pip looks unless it is told not to.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
ROOMS = ("core", "backends/cpu", "backends/sim", "quantization", "api", "conformance")
OURS = {"core", *(f"infercore-{room.split('/')[-1]}" for room in ROOMS[1:])}
NEEDED = {"core", "infercore-cpu", "infercore-quantization", "infercore-api"}  # by core[cpu]
VERSION, IMPOSTOR = "1.0.0", "99.0"
INSTALL = re.compile(r"^pip install (.*(?:core-1|core\[).*)$", re.MULTILINE)
DOCUMENTED = INSTALL.findall((ROOT / "docs/how-to/install.md").read_text())


def empty_wheel(folder: Path, name: str, version: str) -> None:
    """A wheel that installs nothing but its name."""
    stem = f"{name.replace('-', '_')}-{version}"
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        "Provides-Extra: cpu\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: none\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for file, text in files.items():
            wheel.writestr(f"{stem}.dist-info/{file}", text)


def metadata(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return archive.read(name).decode()


def requirements(wheels: list[Path]) -> Iterator[Requirement]:
    """What the wheels need beside each other, here."""
    for wheel in wheels:
        for text in HeaderParser().parsestr(metadata(wheel)).get_all("Requires-Dist", []):
            needed = Requirement(text)
            here = needed.marker is None or needed.marker.evaluate({"extra": "cpu"})
            if here and canonicalize_name(needed.name) not in OURS:
                yield needed


def lowest(needed: Requirement) -> str:
    return next(each.version for each in needed.specifier if each.operator in (">=", "=="))


def make_index(folder: Path, wheels: Iterator[Path]) -> None:
    """A simple index in files: a page of links per name."""
    for wheel in wheels:
        page = folder / canonicalize_name(wheel.name.split("-")[0]) / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        link = f'<a href="{wheel.as_uri()}#sha256={digest}">{wheel.name}</a>\n'
        page.write_text((page.read_text() if page.exists() else "") + link)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dist/ as `make wheels` leaves it, a full wheelhouse/, and simple/, the impostors' index."""
    place = tmp_path_factory.mktemp("place")
    build = [sys.executable, "-m", "build", "--quiet", "--wheel", "--no-isolation", "--outdir"]
    builds = [
        subprocess.Popen([*build, place / "dist", ROOT / room], stdout=subprocess.DEVNULL)
        for room in ROOMS
    ]
    assert [each.wait() for each in builds] == [0] * len(ROOMS)
    ours = sorted((place / "dist").glob("*.whl"))
    wheelhouse, index = place / "wheelhouse", place / "indexed"
    for needed in requirements(ours):
        for folder in (wheelhouse, index):
            empty_wheel(folder, needed.name, lowest(needed))
    for name in OURS:
        empty_wheel(index, name, IMPOSTOR)
    for wheel in ours:
        (wheelhouse / wheel.name).hardlink_to(wheel)
    make_index(place / "simple", index.glob("*.whl"))
    return place


def resolved(place: Path, arguments: str) -> dict[str, str]:
    """{name: version} that `pip install ARGUMENTS` would install, typed into a shell in `place`."""
    pip = f"{sys.executable} -m pip --disable-pip-version-check install"
    ended = subprocess.run(
        ["sh", "-c", f"{pip} --quiet --dry-run --ignore-installed --report - {arguments}"],
        capture_output=True,
        text=True,
        cwd=place,
        env={**_without_pip_settings(), "PIP_INDEX_URL": (place / "simple").as_uri()},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = [each["metadata"] for each in json.loads(ended.stdout)["install"]]
    return {canonicalize_name(each["name"]): each["version"] for each in found}


def _without_pip_settings() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return {**kept, "PIP_CONFIG_FILE": os.devnull}


def test_the_page_shows_both_ways() -> None:
    assert len(DOCUMENTED) == 2
    assert any("dist/infercore_*.whl" in command for command in DOCUMENTED)
    assert any("--no-index --find-links" in command for command in DOCUMENTED)
    script = (ROOT / ".ci" / "answer-from-wheels").read_text()
    assert "'dist/core-1.0.0-py3-none-any.whl[cpu]' dist/infercore_*.whl" in script


@pytest.mark.parametrize("arguments", DOCUMENTED)
def test_a_documented_install_takes_ours(place: Path, arguments: str) -> None:
    found = resolved(place, arguments)
    assert found.keys() >= NEEDED
    assert {name: found[name] for name in OURS & found.keys()} == dict.fromkeys(
        OURS & found.keys(), VERSION
    )
    assert "torch" in found


def test_a_bare_name_would_take_the_impostor(place: Path) -> None:
    """Why the two ways are as they are."""
    found = resolved(place, "--find-links wheelhouse 'core[cpu]'")
    assert found["core"] == IMPOSTOR


def test_the_wheels_hold_what_they_should(place: Path) -> None:
    names: dict[str, set[str]] = {}
    for wheel in (place / "dist").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            names[wheel.name.split("-")[0]] = set(archive.namelist())
    assert names.keys() == {name.replace("-", "_") for name in OURS}
    assert {"infercore/demo/model.safetensors", "infercore/demo/MODEL_CARD.md"} <= names["core"]
    tops = {name.split("/")[0] for held in names.values() for name in held}
    packages = {name.replace("-", "_") for name in OURS - {"core"}}
    assert {top for top in tops if "." not in top} == {"infercore", *packages}
