"""What a process needs in which defects can be had as backends."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from planted.site import install_defects

TESTS = Path(__file__).parents[2]


@contextmanager
def environment() -> Iterator[Mapping[str, str]]:
    """Variables of such a process, with the plugin installed for as long as this lasts."""
    with TemporaryDirectory(prefix="planted-defects-") as site:
        install_defects(Path(site))
        paths = [site, TESTS / "defects", TESTS / "support"]
        yield {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "OMP_NUM_THREADS": "1",
        }
