"""What happens before a model is loaded: finding the plugin, probing, declaring."""

import json
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

from infercore.capabilities import Capabilities, Capability
from infercore.executor import Probe
from infercore_conformance import check
from infercore_conformance.fixtures import Numerics, Start
from infercore_conformance.models import served
from infercore_conformance.subject import Subject, build

LONGEST = 1.0  # seconds, of the contract
TRIES = 3  # the fastest counts: what else the machine does is not the backend's fault
FRAMEWORKS = ("torch", "jax", "tensorflow")

PROBE = """
import json, sys, time
from infercore.plugins import PluginManager
manager, start = PluginManager(), time.perf_counter()
found = manager.backend(sys.argv[1])
imported = time.perf_counter() - start
probe = found.probe()
print(json.dumps({
    "import": imported,
    "probe": time.perf_counter() - start - imported,
    "loaded": [name for name in sys.argv[2:] if name in sys.modules],
    "devices": probe.devices,
}))
"""


def in_new_process(code: str, *arguments: str) -> Any:
    """What `code`, run by a new Python, prints as JSON."""
    command = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        pytest.fail(f"a new process ended with {ended.returncode}:\n{ended.stderr}")
    return json.loads(ended.stdout.splitlines()[-1])


@check("executor.probe.light", "Finding and probing the backend loads no torch and no JAX.")
def test_probing_loads_no_framework(subject: Subject) -> None:
    """A router lists what is installed, on machines without the device. Import them late."""
    found = in_new_process(PROBE, subject.name, *FRAMEWORKS)
    assert not found["loaded"], f"probing loaded {', '.join(found['loaded'])}"


@check("executor.probe.fast", "Importing the plugin and probing take under a second each.")
def test_probing_is_fast(subject: Subject, numerics: Numerics) -> None:
    """Measured in new processes. A driver's start belongs into load, not into probe."""
    runs = [in_new_process(PROBE, subject.name) for _ in range(TRIES)]
    numerics.record("import_seconds", min(run["import"] for run in runs), LONGEST)
    numerics.record("probe_seconds", min(run["probe"] for run in runs), LONGEST)


@check("executor.probe.devices", "A probe that finds the hardware names its devices.")
def test_a_probe_names_devices(subject: Subject) -> None:
    """The banner and the report show them; they name the hardware, not the vendor's code."""
    probe = subject.cls.probe()
    assert isinstance(probe, Probe)
    assert probe.available, "the same probe, a moment ago, found the hardware"
    assert probe.devices, "the hardware is there, and no device is named"
    assert all(isinstance(name, str) and name.strip() for name in probe.devices)


@check("executor.capabilities.constant", "Capabilities are the same in every executor, always.")
def test_capabilities_are_constant(subject: Subject, start: Start) -> None:
    """Core asks once and plans by the answer; what loading finds out is for `load` to refuse."""
    unloaded = build(subject.cls)
    declared = unloaded.capabilities()
    unloaded.shutdown()
    assert declared == subject.capabilities, "two executors declare different capabilities"
    running = start()
    assert running.executor.capabilities() == declared, "they changed when a model was loaded"


@check("executor.capabilities.legal", "Declared limits are values that mean something.")
def test_capabilities_are_legal(capabilities: Capabilities) -> None:
    """A value that core cannot use is as good as none; a doubled one hides a typing error."""
    for name in ("dtypes", "kv_dtypes", "block_sizes", "weight_kinds", "collectives"):
        values = getattr(capabilities, name)
        assert len(set(values)) == len(values), f"{name} names a value twice: {values}"
    assert all(type(size) is int and size > 0 for size in capabilities.block_sizes)
    assert "dense" in capabilities.weight_kinds, "what core dequantizes arrives as dense"
    planned = [static.dimension for static in capabilities.static_dimensions]
    assert len(set(planned)) == len(planned), "a static dimension is declared twice"
    for static in capabilities.static_dimensions:
        assert static.multiple_of >= 1, f"{static} has no legal value"
        assert static.compile_seconds >= 0
    for name, answer in capabilities.extras.items():
        assert isinstance(answer, Capability), f"extras[{name!r}] is {answer!r}, no Capability"
    for field in fields(capabilities):
        if field.type is Capability:
            answer = getattr(capabilities, field.name)
            assert isinstance(answer, Capability), f"{field.name} is {answer!r}, no Capability"


@check("executor.capabilities.models", "At least one architecture that is declared can be loaded.")
def test_an_architecture_is_served(capabilities: Capabilities) -> None:
    """An executor with models of its own names them as config.json does ("LlamaForCausalLM")."""
    assert served(capabilities.architectures), (
        f"of {capabilities.architectures} none is a family that is installed and that this suite "
        "has a tiny model of"
    )
