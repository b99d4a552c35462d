"""Regenerate the Python of gRPC's services: `python api/generate_protocols.py` (grpcio-tools)."""

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent / "src"
FOLDER = "infercore_api/router/grpc"
PROTOS = ("generation", "open_inference")


def generate(out: Path) -> None:
    """Write `*_pb2.py` and their stubs below `out`. Raises CalledProcessError."""
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={SOURCE}"]
    files = [f"{FOLDER}/{name}.proto" for name in PROTOS]
    subprocess.run([*command, f"--python_out={out}", f"--pyi_out={out}", *files], check=True)


if __name__ == "__main__":
    generate(SOURCE)
