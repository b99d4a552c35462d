"""Regenerate the engine protocol's Python: `python core/generate_protocol.py` (grpcio-tools)."""

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent / "src"
PROTO = "infercore/engine/engine.proto"


def generate(out: Path) -> None:
    """Write `engine_pb2.py` and its stub below `out`. Raises CalledProcessError."""
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={SOURCE}"]
    subprocess.run([*command, f"--python_out={out}", f"--pyi_out={out}", PROTO], check=True)


if __name__ == "__main__":
    generate(SOURCE)
