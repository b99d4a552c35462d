"""What is refused on the way to a model says why, and what to do; a folder needs no hub."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_cases import REFUSED, REPO, SETTINGS, blobs, contents, find, hub_here, small
from infercore.errors import CheckpointError, ConfigError
from infercore.hub import DEMO, ResolvedModel, demo_path, resolve
from loopback_hub import LoopbackHub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with hub_here(tmp_path, monkeypatch) as server:
        yield server


class TestAccess:
    def test_the_token_goes_to_the_hub_alone(
        self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.repository(REPO).push(small())
        hub.tokens.add("hf_mine")
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        find()
        assert {(asked.where, asked.token) for asked in hub.asked} == {
            ("hub", "hf_mine"),
            ("store", None),
        }

    def test_gated(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        repository = hub.repository(REPO)
        repository.push(small())
        repository.gated = True
        remedy = f"{REPO} is gated: open {hub.endpoint}/{REPO}, accept its terms, and set HF_TOKEN"
        with pytest.raises(CheckpointError, match=remedy):
            find()
        hub.tokens |= {"hf_mine", "hf_reader"}
        repository.readers.add("hf_reader")
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        with pytest.raises(CheckpointError, match=f"{remedy}.*another one than is set now"):
            find()
        monkeypatch.setenv("HF_TOKEN", "hf_reader")
        assert contents(find().path) == small()

    def test_private_or_missing(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        repository = hub.repository(REPO)
        repository.push(small())
        repository.private = True
        for model in (REPO, "ant/other"):
            with pytest.raises(CheckpointError, match=f"knows no model {model}, .*set to a token"):
                find(model)
        hub.tokens |= {"hf_mine", "hf_reader"}
        repository.readers.add("hf_reader")
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        with pytest.raises(CheckpointError, match="the token that was sent may not read it"):
            find()
        monkeypatch.setenv("HF_TOKEN", "hf_reader")
        assert contents(find().path) == small()

    def test_a_wrong_token(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.repository(REPO).push(small())
        monkeypatch.setenv("HF_TOKEN", "hf_expired")
        with pytest.raises(CheckpointError, match="does not accept the token in HF_TOKEN .*make a"):
            find()

    def test_no_text_of_a_token_is_fatal(
        self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.repository(REPO).push(small())
        monkeypatch.setenv("HF_TOKEN", "hf_\u00fc\u4e2d")
        with pytest.raises(ConfigError, match="HF_TOKEN .* set it to the token alone"):
            find()

    def test_a_refusal_counts_although_there_is_a_copy(
        self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.repository(REPO).push(small())
        find()
        hub.status = 403
        with pytest.raises(CheckpointError, match="refuses ant/small .*403.*check what the token"):
            find()


class TestRefusal:
    def test_pickled_weights_before_anything_is_downloaded(
        self, hub: LoopbackHub, tmp_path: Path
    ) -> None:
        hub.repository(REPO).push({**SETTINGS, **REFUSED})
        with pytest.raises(
            CheckpointError, match="only pickled weights .*pytorch_model.bin.* Conv"
        ):
            find()
        assert hub.fetched() == []
        assert blobs(tmp_path) == []

    @pytest.mark.parametrize(
        ("files", "says"),
        [
            (SETTINGS, "holds no .*safetensors file"),
            ({"model.safetensors": b""}, "holds no config.json"),
            ({}, "holds no .*safetensors file"),
        ],
    )
    def test_no_model(self, hub: LoopbackHub, files: dict[str, bytes], says: str) -> None:
        hub.repository(REPO).push(files)
        with pytest.raises(CheckpointError, match=says):
            find()
        assert hub.fetched() == []

    @pytest.mark.parametrize(
        ("index", "says"),
        [
            (b'{"weight_map": {"a": "model.safetensors", "b": "b.safetensors"}}', "lists b.saf"),
            (b'{"weight_map": {"a": "../../a.safetensors"}}', "no plain .*safetensors file name"),
            (b"[]", "is no index of the form"),
        ],
    )
    def test_a_bad_index(self, hub: LoopbackHub, index: bytes, says: str) -> None:
        hub.repository(REPO).push({**small(), "model.safetensors.index.json": index})
        with pytest.raises(CheckpointError, match=says):
            find()

    def test_too_little_disk(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.repository(REPO).push(small())
        hub.sizes["model.safetensors"] = 2**60
        needed = 2**60 + sum(map(len, SETTINGS.values()))
        with pytest.raises(CheckpointError, match=f"needs {needed:,} more bytes in {tmp_path}"):
            find()
        assert hub.fetched() == []

    def test_a_disk_that_fills_up(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.repository(REPO).push(small())

        def fill(phase: str, done: int, total: int) -> None:
            if done:  # as the write beside it would
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        needed = sum(map(len, small().values()))
        with pytest.raises(
            CheckpointError, match=f"needs {needed:,} more bytes in {tmp_path}.*HF_"
        ):
            resolve(REPO, None, progress=fill)

    def test_a_cache_that_cannot_be_written(
        self, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.repository(REPO).push(small())
        (tmp_path / "taken").write_text("a file")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "taken" / "hub"))
        with pytest.raises(CheckpointError, match="cannot be kept in .*set HF_HUB_CACHE"):
            find()

    def test_a_file_that_stays_short(self, hub: LoopbackHub) -> None:
        hub.repository(REPO).push(small())
        hub.sizes["model.safetensors"] = 100
        with pytest.raises(CheckpointError, match="the download of ant/small broke .*start again"):
            find()

    def test_no_hub_at_all(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.prose = True
        with pytest.raises(CheckpointError, match="does not answer like a hub .*check HF_ENDPOINT"):
            find()
        for nonsense in ("localhost:1", "ftp://x", "http://"):
            monkeypatch.setenv("HF_ENDPOINT", nonsense)
            with pytest.raises(ConfigError, match="HF_ENDPOINT is .*, which is no URL of a hub"):
                find()

    @pytest.mark.parametrize(
        "model",
        ["", "gpt2", "a--b/c", "a/b..c", "a/b.git", "a/-b", "a/b.", "a b/c", "a/b\n", "a:b/c",
         "\u00fc/b", "a/" + "b" * 97, "a/"],
    )  # fmt: skip
    def test_no_hub_id(self, hub: LoopbackHub, model: str) -> None:
        with pytest.raises(ConfigError, match="is neither a folder here nor a hub id. A hub id is"):
            find(model)
        assert hub.asked == []


class TestLocal:
    @pytest.mark.parametrize(
        "model",
        ["./ant/small", "../x", "/no/such", "~/no/such", "a/b/c", "a\\b", "../../a/b"],
    )
    def test_what_looks_like_a_path_is_never_looked_up(self, hub: LoopbackHub, model: str) -> None:
        hub.repository(REPO).push(small())
        with pytest.raises(CheckpointError, match="there is no folder .*; check the path"):
            find(model)
        assert hub.asked == []

    def test_a_folder_wins_over_a_hub_id(
        self, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.repository(REPO).push(small())
        (tmp_path / REPO).mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        assert find() == ResolvedModel(Path(REPO))
        assert find(str(tmp_path / REPO)) == ResolvedModel(tmp_path / REPO)
        assert hub.asked == []

    def test_the_bundled_model(self) -> None:
        assert find(DEMO) == ResolvedModel(demo_path())

    def test_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "model.safetensors"
        file.touch()
        with pytest.raises(CheckpointError, match="is a file; name the folder"):
            find(str(file))

    def test_a_path_that_no_system_takes(self) -> None:
        with pytest.raises(CheckpointError, match="cannot be looked at: File name too long; check"):
            find("./" + 300 * "x")

    @pytest.mark.parametrize("model", [DEMO, "."])
    def test_no_revision_is_silently_ignored(self, model: str) -> None:
        with pytest.raises(ConfigError, match="is a folder on this machine and has no revision"):
            find(model, "main")

    def test_imports_neither_the_library_nor_torch(self, tmp_path: Path) -> None:
        code = f"""
import sys
from infercore.hub import DEMO, resolve
for model in ({str(tmp_path)!r}, DEMO):
    resolve(model, None, progress=print)
heavy = {{"torch", "huggingface_hub", "httpx2", "tqdm", "numpy.random"}} & sys.modules.keys()
assert not heavy - {{"numpy.random"}}, heavy
"""
        subprocess.run([sys.executable, "-c", code], check=True)
