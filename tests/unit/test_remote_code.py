"""A model folder's own code is never imported, whatever its settings ask for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infercore.hub import demo_path

DEMO = demo_path()

CANARY = """
import sys
from pathlib import Path
from infercore.model_folder import ModelFolder
from infercore.text.chat_template import ChatTemplate
from infercore.text.tokenizer import Tokenizer
path = Path(sys.argv[1])
folder = ModelFolder.open(path)
Tokenizer(path)
with ChatTemplate.open(path) as template:
    template.render([{"role": "user", "content": "hi"}])
if "modeling_canary" in sys.modules or "torch" in sys.modules:
    sys.exit(1)
"""


@pytest.mark.parametrize("flags", [(), ("-O",)])
def test_code_in_a_folder_is_never_imported(tmp_path: Path, flags: tuple[str, ...]) -> None:
    for file in DEMO.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    canary = tmp_path / "imported"
    (tmp_path / "modeling_canary.py").write_text(f"open({str(canary)!r}, 'w')")
    auto_map = {"auto_map": {"AutoModelForCausalLM": "modeling_canary.Canary",
                             "AutoTokenizer": "modeling_canary.Canary"}}  # fmt: skip
    for file_name in ("config.json", "tokenizer_config.json"):
        settings_json = json.loads((tmp_path / file_name).read_text()) | auto_map
        (tmp_path / file_name).write_text(json.dumps(settings_json))
    subprocess.run([sys.executable, *flags, "-c", CANARY, str(tmp_path)], check=True, cwd=tmp_path)
    assert not canary.exists()
