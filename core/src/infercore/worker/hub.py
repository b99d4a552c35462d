"""Finds a model: a local folder, the bundled demo, or a download from the Hugging Face hub."""

from pathlib import Path

import infercore

DEMO = "infercore/demo"


def demo_path() -> Path:
    """The folder of the bundled model."""
    return Path(infercore.__file__).parent / "demo"
