"""The http profile: green on what is right, and what its checks are made of.

That each check fails for its own cause is for the planted defects to show.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infercore.capabilities import Support
from infercore.text.tokenizer import Tokenizer
from infercore_conformance import http_server
from infercore_conformance.http_client import parsed_metrics
from infercore_conformance.http_server import SERVER, Host, write_text_model
from infercore_conformance.running import open_model
from infercore_conformance.subject import Subject
from plain_backend import PlainBackend

INFERCORE = Path(sys.executable).with_name("infercore")


def test_without_a_server_its_checks_do_not_run_and_say_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    can = PlainBackend().capabilities()
    assert SERVER.answer(can).support is Support.FULL
    monkeypatch.setattr(http_server, "API", "a_package_that_is_not_there")
    answer = SERVER.answer(can)
    assert answer.support is Support.NOT_IMPLEMENTED
    assert answer.detail == "infercore-api is not installed here"


def test_a_backend_of_other_models_only_is_not_asked() -> None:
    can = replace(PlainBackend().capabilities(), architectures=("AcmeForCausalLM",))
    assert SERVER.answer(can).support is Support.UNSUPPORTED


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_its_model_has_a_word_for_every_token(tmp_path: Path, architecture: str) -> None:
    write_text_model(tmp_path, architecture)
    spec, _ = open_model(tmp_path)
    ids = Tokenizer(tmp_path).encode("Once upon a time")
    assert ids
    assert max(ids) < spec.vocab_size
    assert (tmp_path / "chat_template.jinja").exists()


def test_metrics_are_parsed_by_series() -> None:
    text = '# HELP a_total Some\n# TYPE a_total counter\na_total{x="y z"} 3.0\nb 1e-05\n'
    assert parsed_metrics(text) == {'a_total{x="y z"}': 3.0, "b": 1e-05}


@pytest.mark.parametrize(
    ("text", "says"),
    [("a 1\na 2\n", "twice"), ("a\n", "no series"), ("a one\n", "'one' as a value of a")],
)
def test_metrics_that_cannot_be_parsed_are_told(text: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        parsed_metrics(text)


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host(Subject.open("cpu"))
    yield made
    made.close()


@pytest.mark.slow
def test_a_host_starts_a_new_server_where_one_has_ended(host: Host) -> None:
    first = host.server()
    assert host.server() is first
    first.terminate()
    assert first.wait_ended() == 0
    second = host.server()
    assert second is not first
    assert second.get("/health").status == 200
    host.close()
    assert second.process.poll() is not None
    assert not host.folder.exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", ["cpu", "sim"])
def test_it_is_green(tmp_path: Path, backend: str) -> None:
    report = tmp_path / "report.json"
    command = [str(INFERCORE), "conformance", "run", "--backend", backend, "--profile", "http"]
    ended = subprocess.run(
        [*command, "--report", str(report), "--", "-q"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    checks = json.loads(report.read_text())["checks"]
    assert len(checks) >= 18
    assert {each["status"] for each in checks} == {"passed"}
