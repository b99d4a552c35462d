"""What a report says about the machine, the software on it and the backend."""

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from typing import Any

from infercore.executor import API_VERSION
from infercore_conformance.subject import Subject

# libraries whose version changes numbers or speed; those that are not installed are left out
PACKAGES = ("core", "numpy", "torch", "jax", "jaxlib", "safetensors", "pytest")
# prefixes of environment variables that do the same; never all variables, some are secrets
VARIABLES = ("OMP_", "MKL_", "KMP_", "OPENBLAS_", "TORCH_", "JAX_")


def subject_facts(subject: Subject) -> dict[str, Any]:
    """The backend as JSON: implementation, hardware, capabilities, environment."""
    return {
        "implementation": {"backend": subject.name, **asdict(subject.implementation)},
        "contract": ".".join(map(str, API_VERSION)),
        "hardware": {"devices": list(subject.probe.devices)},
        "capabilities": subject.capabilities.facts(),
        "environment": environment(),
    }


def environment() -> Mapping[str, Any]:
    """Python, machine, packages and the variables that libraries read."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "packages": {name: _version(name) for name in PACKAGES if _version(name)},
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
