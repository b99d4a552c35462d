"""Models come from a folder, or from a hub: a real one, small, on loopback."""

import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import hf_hub_download

from hub_cases import (
    REFUSED,
    REPO,
    SETTINGS,
    WEIGHTS,
    blobs,
    contents,
    find,
    hub_here,
    sharded,
    small,
)
from infercore.errors import CheckpointError, ConfigError
from infercore.hub import demo_path, resolve
from infercore.hub.cache import Hub
from infercore.model_folder import ModelFolder
from loopback_hub import LoopbackHub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with hub_here(tmp_path, monkeypatch) as server:
        yield server


class TestDownload:
    def test_takes_settings_and_safetensors_and_nothing_that_could_run(
        self, hub: LoopbackHub, tmp_path: Path
    ) -> None:
        commit = hub.repository(REPO).push({**small(), **REFUSED})
        found = find()
        assert found.commit == commit
        assert contents(found.path) == small()
        assert hub.fetched() == sorted(name.split("/")[-1] for name in small())
        assert found.path.is_relative_to(tmp_path / "home" / "hub")

    def test_takes_the_shards_of_the_index_and_no_copy_of_them(self, hub: LoopbackHub) -> None:
        copies = {"consolidated.safetensors": b"twice", "model.fp16.safetensors": b"thrice"}
        hub.repository(REPO).push({**sharded(), **copies})
        assert contents(find().path) == sharded()

    def test_takes_every_safetensors_file_where_no_name_is_special(self, hub: LoopbackHub) -> None:
        files = {**SETTINGS, "a.safetensors": b"a", "b [1].safetensors": b"b"}
        hub.repository(REPO).push(files)
        assert contents(find().path) == files

    def test_a_whole_model_can_be_opened(self, hub: LoopbackHub) -> None:
        hub.repository("org/demo").push(contents(demo_path()))
        folder = ModelFolder.open(find("org/demo").path)
        assert folder.eos_ids == ModelFolder.open(demo_path()).eos_ids

    def test_progress_counts_bytes_up_to_the_total(self, hub: LoopbackHub) -> None:
        files = small(WEIGHTS)
        hub.repository(REPO).push({**files, **REFUSED})
        told: list[tuple[str, int, int]] = []
        resolve(REPO, None, progress=lambda *step: told.append(step))
        total = sum(map(len, files.values()))
        assert {(phase, of) for phase, _, of in told} == {("download", total)}
        done = [done for _, done, _ in told]
        assert done == sorted(done)
        assert done[0] == 0
        assert done[-1] == total
        assert len(set(done)) > 4

    def test_a_broken_connection_is_resumed_where_it_broke(self, hub: LoopbackHub) -> None:
        hub.repository(REPO).push(small(WEIGHTS))
        hub.breaks["model.safetensors"] = 1
        told: list[int] = []
        found = resolve(REPO, None, progress=lambda _, done, total: told.append(done))
        assert contents(found.path) == small(WEIGHTS)
        assert max(asked.start for asked in hub.asked) == 10 * 2**20
        assert told[-1] == max(told)

    def test_files_that_are_complete_are_not_fetched_again(self, hub: LoopbackHub) -> None:
        hub.repository(REPO).push(sharded())
        found = find()
        lost = found.path / "model-00002-of-00002.safetensors"
        lost.resolve().unlink()
        lost.unlink()
        hub.asked.clear()
        told: list[int] = []
        resolve(REPO, None, progress=lambda _, done, total: told.append(total))
        assert contents(found.path) == sharded()
        assert hub.fetched() == [lost.name]
        assert told[-1] == len(lost.name)

    def test_the_log_holds_no_requests(
        self, hub: LoopbackHub, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Addresses of the store may be signed."""
        hub.repository(REPO).push(small())
        with caplog.at_level(logging.INFO):
            find()
        assert hub.store not in caplog.text

    def test_a_branch_that_moves_during_the_download_is_noticed(self, hub: LoopbackHub) -> None:
        repository = hub.repository(REPO)
        old = repository.push(small())

        def push(phase: str, done: int, total: int) -> None:
            if done == 0:
                repository.push(small(b"newer"))

        with pytest.raises(CheckpointError, match=f"{REPO} moved from {old} .*; start again"):
            resolve(REPO, None, progress=push)
        assert find().commit == repository.refs["main"]


class TestRevision:
    def test_branch_tag_and_commit(self, hub: LoopbackHub) -> None:
        repository = hub.repository(REPO)
        tagged = repository.push(small(b"one"), "v1.0")
        pull = repository.push(small(b"pull"), "refs/pr/3")
        main = repository.push(small(b"two"))
        assert find().commit == find(revision="main").commit == main
        for revision, commit in (("v1.0", tagged), (tagged, tagged), ("refs/pr/3", pull)):
            found = find(revision=revision)
            assert found.commit == commit
            assert contents(found.path) == repository.commits[commit]

    @pytest.mark.parametrize("revision", ["v2.0", "0" * 40])
    def test_an_unknown_one(self, hub: LoopbackHub, revision: str) -> None:
        hub.repository(REPO).push(small())
        with pytest.raises(CheckpointError, match=f"{REPO} has no revision '{revision}'; .*take"):
            find(revision=revision)

    @pytest.mark.parametrize("revision", ["", "../x", "a..b", "-f", "a b", "a:b", "x/", "x.lock"])
    def test_no_git_name(self, hub: LoopbackHub, revision: str) -> None:
        with pytest.raises(ConfigError, match="is no name that git allows; give a branch"):
            find(revision=revision)
        assert hub.asked == []


class TestCache:
    def test_the_engine_needs_no_network_for_the_supervisors_commit(self, hub: LoopbackHub) -> None:
        hub.repository(REPO).push({**small(), **REFUSED})
        found = find()
        hub.asked.clear()
        assert find(revision=found.commit) == found
        assert hub.asked == []
        hub.close()
        huggingface_hub.close_session()
        assert find(revision=found.commit) == found

    def test_a_branch_is_asked_for_and_nothing_else(self, hub: LoopbackHub) -> None:
        hub.repository(REPO).push(small())
        found = find()
        hub.asked.clear()
        assert find() == found
        assert [asked.path for asked in hub.asked] == [f"/api/models/{REPO}/revision/main"]
        hub.repository(REPO).push(small(b"newer"))
        assert contents(find().path) == small(b"newer")

    @pytest.mark.parametrize("how", ["gone", "down", "limited"])
    def test_a_hub_out_of_reach(
        self, hub: LoopbackHub, caplog: pytest.LogCaptureFixture, how: str
    ) -> None:
        hub.repository(REPO).push(small())
        found = find()
        hub.status = {"gone": 0, "down": 503, "limited": 429}[how]
        if how == "gone":
            hub.close()
            huggingface_hub.close_session()  # or it asks over the connection that it has
        with caplog.at_level(logging.WARNING, "infercore"):
            assert find() == found
        (line,) = [record.getMessage() for record in caplog.records if "using" in record.msg]
        assert line.startswith(f"{hub.endpoint} cannot be reached (")
        assert "\n" not in line
        assert f"using {REPO} at {found.commit}, found in " in line
        with pytest.raises(CheckpointError, match="no complete copy is in .*; check the network"):
            find("ant/other")

    def test_offline(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.repository(REPO).push(small())
        found = find()
        hub.asked.clear()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert find() == find(revision="main") == find(revision=found.commit) == found
        for model, revision in (("ant/other", None), (REPO, "v1.0")):
            with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set, and .*; download it"):
                find(model, revision)
        assert hub.asked == []

    def test_half_a_snapshot_is_none(
        self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.repository(REPO).push(sharded())
        found = find()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        for name in ("tokenizer.json", "model.safetensors.index.json"):
            kept = (found.path / name).readlink()
            (found.path / name).unlink()
            with pytest.raises(CheckpointError, match="is not complete in"):
                find()
            (found.path / name).symlink_to(kept)
        assert find() == found

    def test_what_other_programs_downloaded_counts(
        self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.repository(REPO).push(sharded())
        cache = Hub.from_environment().cache
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        for name in sharded():
            with pytest.raises(CheckpointError, match="is not complete in"):
                find()
            hf_hub_download(REPO, name, cache_dir=cache, endpoint=hub.endpoint)
        assert contents(find().path) == sharded()

    def test_its_place_is_the_librarys(self) -> None:
        """The library reads the environment at its import, we at the call, by the same rules."""
        code = """
import importlib, itertools, os
from huggingface_hub import constants
from infercore.hub.cache import Hub
names = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
for values in itertools.product((None, "/x", "~/y", "$HOME/z"), repeat=len(names)):
    for name, value in zip(names, values):
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value + name
    importlib.reload(constants)
    assert str(Hub.from_environment().cache) == constants.HF_HUB_CACHE, values
"""
        subprocess.run([sys.executable, "-c", code], check=True)


def test_ctrl_c_ends_a_download(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.repository(REPO).push(small(WEIGHTS))
    hub.stalled.add("model.safetensors")
    code = (
        f"from infercore.hub import resolve\nresolve({REPO!r}, None, progress=lambda *step: None)"
    )
    environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert hub.stopped.wait(60)
    process.send_signal(signal.SIGINT)
    hub.stalled.clear()
    hub.release.set()  # the rest could come now
    _, told = process.communicate()
    assert process.returncode == -signal.SIGINT, told
    assert not [name for name in blobs(tmp_path) if name.endswith(".incomplete")]
    assert not list(tmp_path.rglob("snapshots/*/model.safetensors"))


@pytest.mark.slow
def test_the_conversion_that_is_proposed_works(hub: LoopbackHub, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from tiny_models import make_tiny

    made = tmp_path / "made"
    make_tiny(made)
    tensors = load_file(made / "model.safetensors")
    torch.save(tensors, made / "pytorch_model.bin")
    tokens = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    files = {**contents(made), **{name: (demo_path() / name).read_bytes() for name in tokens}}
    del files["model.safetensors"]
    hub.repository(REPO).push(files)
    with pytest.raises(CheckpointError) as refused:
        find()
    command = shlex.split(str(refused.value).partition("serve the folder: python ")[2])
    environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1"}
    subprocess.run([sys.executable, *command], check=True, cwd=tmp_path, env=environment)
    converted = load_file(tmp_path / "converted" / "model.safetensors")
    assert converted.keys() == tensors.keys()
    assert all(torch.equal(converted[name], tensors[name]) for name in tensors)
    assert ModelFolder.open(tmp_path / "converted").eos_ids
