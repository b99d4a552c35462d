"""Who may import whom, what is loaded where, and whose name may stand where."""

import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROCESSES = {
    "router": "infercore_api.router.main, infercore_api.router.tgi, infercore_api.router.openai",
    "supervisor": "infercore_api.cli.main, infercore_api.supervisor.serve",
    "engine": "infercore.engine_process, infercore.models.plugin, infercore.plugins, infercore_cpu",
}
NO_TORCH = ("infercore.engine", "infercore.text", "infercore.hub", "infercore.kinds")
VENDORS = (
    "amd apple ascend cuda cudnn gaudi geforce gfx habana hpu hip inferentia intel maia metal mlu "
    "mps musa nccl neuron npu nvidia rccl rocm tpu trainium xla xpu"
)
VENDOR = re.compile(rf"(?<![a-z])({'|'.join(VENDORS.split())})(?![a-z])", re.IGNORECASE)
# TGI's flags, which are accepted and do nothing, and a format's name in its files
COMPATIBLE = {"cuda-graphs", "cuda-memory-fraction", "intel/auto-round"}


def run(code: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_rooms_import_only_what_they_may(tmp_path: Path) -> None:
    ended = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--cache-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("modules", PROCESSES.values(), ids=PROCESSES)
def test_what_a_process_starts_with_leaves_torch_alone(modules: str) -> None:
    assert run(f"import sys, {modules}; print('torch' in sys.modules)") == "False"


def test_no_module_of_the_control_plane_brings_torch_in() -> None:
    names = [
        info.name
        for package in NO_TORCH
        for info in pkgutil.iter_modules(import_module(package).__path__, f"{package}.")
    ]
    assert len(names) > 20
    assert run(f"import sys, {', '.join(names)}; print('torch' in sys.modules)") == "False"


def test_importing_the_package_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, infercore; print({'torch', 'numpy', 'grpc', 'pluggy'} & set(sys.modules))"
    assert run(code) == "set()"


def test_the_public_names_are_there() -> None:
    infercore = import_module("infercore")
    assert {"LLM", "SamplingParams", "Completion"} <= set(infercore.__all__)
    for package in ("infercore", "infercore.kinds"):
        module = import_module(package)
        assert all(hasattr(module, name) for name in module.__all__)
    with pytest.raises(AttributeError, match="no attribute 'LMM'"):
        _ = infercore.LMM


def sources() -> list[Path]:
    rooms = ("core", "quantization", "api", "conformance", "backends/sim")
    folders = [ROOT / room / "src" for room in rooms]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    return [file for file in files if file.suffix in (".py", ".pyi", ".proto", ".jinja")]


def test_no_vendor_is_named_outside_the_backends() -> None:
    found = []
    for file in sources():
        for number, line in enumerate(file.read_text().splitlines(), 1):
            text = line
            for flag in COMPATIBLE:
                text = text.replace(f'"{flag}"', "")
            if VENDOR.search(text):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, "ask a capability, or move it below backends/:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("line", "names_one"),
    [
        ("torch.cuda.synchronize()", True),
        ("if backend.name == 'rocm':", True),
        ("is_hpu = True", True),
        ("a relationship, compared, steps, shape, metallic, input", False),
    ],
)
def test_a_vendor_is_seen_when_it_is_named(line: str, names_one: bool) -> None:
    assert bool(VENDOR.search(line)) == names_one
