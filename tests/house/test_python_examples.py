"""The Python examples of the pages run, the backend of the guide as an installed plugin."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from plugin_packages import install

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GUIDE = ROOT / "docs/how-to/write-a-backend.md"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
ON_ONE_CPU = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
LISTED = """
import sys
from infercore.plugins import PluginManager
assert any(each.name == "backend.acme" and each.available for each in PluginManager().list())
assert "torch" not in sys.modules
"""


def example(page: Path) -> str:
    """The page's blocks that name no file, one after the other."""
    found = FENCE.findall(page.read_text())
    return "\n".join(text for *kind, text in found if kind == ["python", ""])


def install_plugin(files: dict[str, str], site: Path) -> None:
    """What `pip install` would make of a page's files."""
    project = tomllib.loads(files.pop("pyproject.toml"))["project"]
    modules = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): text
        for name, text in files.items()
    }
    entry_points = project["entry-points"]["infercore.plugins"]
    install(site, project["name"], entry_points, modules, version=project["version"])


def run(program: str, folder: Path) -> None:
    """On one CPU, as other tests have the others; warnings are errors."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", ON_ONE_CPU + program],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_the_pages_examples_run(tmp_path: Path) -> None:
    """All in one process, so that torch is imported once; a traceback names the page."""
    examples = {str(page.relative_to(ROOT)): example(page) for page in PAGES if page != GUIDE}
    programs = [
        f"exec(compile({program!r}, {name!r}, 'exec'), {{}})\n"
        for name, program in examples.items()
        if program
    ]
    assert len(programs) >= 4
    run("".join(programs), tmp_path)


def test_the_backend_of_the_guide_runs_as_a_plugin(tmp_path: Path) -> None:
    install_plugin(
        {name: text for _, name, text in FENCE.findall(GUIDE.read_text()) if name}, tmp_path
    )
    assert "acme" in example(GUIDE)
    run(LISTED + example(GUIDE), tmp_path)
