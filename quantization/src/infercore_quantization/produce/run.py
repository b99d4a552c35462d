"""Goes through a model layer by layer; each finished layer is a file of the output folder.

The folder is a model only once config.json is there, which is written last. A run that was killed
goes on with the layers that its folder holds: what they compute is computed again, which costs
little beside the search for their codes.
"""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infercore.errors import ConfigError, UnsupportedModel
from infercore.executor import Progress
from infercore.kinds import Dense
from infercore.model_folder import read_json
from infercore.model_spec import LayerSpec, ModelSpec
from infercore.worker.dense_format import DenseFormat
from infercore.worker.loader import INDEX, Checkpoint, CheckpointWeights
from infercore.worker.safetensors_file import SafetensorsFile
from infercore_quantization.produce.block import Block, embed, stages_of
from infercore_quantization.produce.methods import Calibrated, Made, method_of
from infercore_quantization.produce.opening import Opened
from infercore_quantization.produce.overlay import Overlay
from infercore_quantization.produce.safetensors_writer import write_json, write_safetensors
from infercore_quantization.produce.settings import Settings
from infercore_quantization.produce.windows import Int64

UNFINISHED = "unfinished_quantization.json"
REPORT = "quantization_report.json"
HIDDEN = "calibration.partial"
KEPT = (  # files of the original that belong to the new model too
    *("generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template*", "*.model", "LICENSE*"),
)

Errors = dict[str, dict[str, float]]


def quantize(
    opened: Opened, settings: Settings, output: Path, windows: Int64 | None, progress: Progress
) -> Errors:
    """Write the quantized model to the folder `output`; go on if it holds a part of it.

    windows: int64[R, T] of calibration text, None for methods that need none.
    Returns {layer number: {linear layer: error}} (see `Made`).

    Raises UnsupportedModel, ConfigError and CheckpointError, all but the last before any work.
    """
    run = _Run(opened, settings, output, windows, progress)
    run.prepare()
    with torch.inference_mode():
        run.layers()
    return run.finish()


class _Run:
    def __init__(
        self,
        opened: Opened,
        settings: Settings,
        output: Path,
        windows: Int64 | None,
        progress: Progress,
    ) -> None:
        self.opened, self.spec, self.output = opened, opened.spec, output
        self.settings, self.windows, self.progress = settings, windows, progress
        self.method = method_of(settings)
        self.count = len(self.spec.layers)
        self.done = 0
        passes = 0 if windows is None else (self.method.passes + 1) * len(windows)
        self.each = max(1, passes)  # ticks of progress in a layer

    def prepare(self) -> None:
        """Refuse what cannot be done, and leave a note for a run that goes on with this one."""
        if self.opened.method.name != DenseFormat.name:
            raise UnsupportedModel(
                f"{self.opened.folder.path} is quantized already, as {self.opened.method.name}; "
                "name the original model, in 16 or 32 bits"
            )
        for layer in self.spec.layers:
            for stage in stages_of(layer):
                for linear in stage.specs:
                    self.method.require(linear)
        self.output.mkdir(parents=True, exist_ok=True)
        note, stated = self._note(), read_json(self.output / UNFINISHED)
        if stated is None and any(self.output.iterdir()):
            raise ConfigError(f"{self.output} is not empty; name a new folder for --output")
        if stated is not None and stated != note:
            changed = sorted(k for k in note if stated.get(k) != note[k])
            raise ConfigError(
                f"{self.output} holds an unfinished run with another {', '.join(changed)}; finish "
                "it with its own options, or remove the folder"
            )
        write_json(self.output / UNFINISHED, note)

    def _note(self) -> dict[str, Any]:
        text = None if self.windows is None else hashlib.sha256(self.windows.tobytes()).hexdigest()
        shapes = sorted((name, list(s)) for name, s in self.spec.tensors().items())
        model = [str(self.opened.folder.path.resolve()), repr(shapes)]
        digest = hashlib.sha256("\n".join(model).encode()).hexdigest()
        return {"settings": self.settings.facts(), "calibration": text, "model": digest}

    def shard(self, number: int) -> Path:
        """Number 0 … layers − 1 are the layers, the last is what is left."""
        return self.output / f"model-{number + 1:05d}-of-{self.count + 1:05d}.safetensors"

    def layers(self) -> None:
        hidden = self._hidden()
        for index, layer in enumerate(self.spec.layers):
            self.done = index * self.each
            self._tell(index)
            if not self.shard(index).exists():
                self._layer(index, layer, hidden)
            if hidden is not None and index + 1 < self.count:
                self.done = (index + 1) * self.each - len(hidden)
                self._block(index, self._stored(index)).forward(hidden)
        self.progress("quantize", self.count * self.each, self.count * self.each)

    def _hidden(self) -> Tensor | None:
        """What comes into the first layer, in a file, so that memory holds one layer's share."""
        if self.windows is None:
            return None
        shape = (*self.windows.shape, self.spec.hidden_size)
        size = shape[0] * shape[1] * shape[2]
        hidden = torch.from_file(str(self.output / HIDDEN), shared=True, size=size).view(shape)
        embed(self.spec, self.opened.weights, self.windows, hidden)
        return hidden

    def _layer(self, index: int, layer: LayerSpec, hidden: Tensor | None) -> None:
        method = self.method
        if isinstance(method, Calibrated):
            assert hidden is not None
            block = self._block(index, self.opened.weights)
            made, weights = method.quantize(block, hidden), block.weights
        else:
            weights = Overlay(self.opened.weights)
            made = method.quantize(layer, weights)
        tensors = {name: weights.tensor(name) for name in _plain_names(layer)}
        self._report(index, made)
        write_safetensors(self.shard(index), {**made.tensors, **tensors})
        self.opened.weights.release()

    def _block(self, index: int, weights: Any) -> Block:
        assert self.windows is not None
        return Block(self.spec, index, weights, self.windows.shape[1], self._tick)

    def _stored(self, index: int) -> CheckpointWeights:
        """A finished layer as its format's reader takes it from the file."""
        checkpoint = Checkpoint([SafetensorsFile(self.shard(index))])
        reader = self.method.reader(self.method.config())
        reader.inspect(checkpoint.shapes())
        return CheckpointWeights(checkpoint, self.spec, reader)

    def _tick(self) -> None:
        self.done += 1
        self._tell((self.done - 1) // self.each)

    def _tell(self, index: int) -> None:
        where = f"layer {index + 1} of {self.count}"
        self.progress(where, self.done, self.count * self.each)

    def _report(self, index: int, made: Made) -> None:
        """Before the layer's own file, so that no finished layer lacks its errors."""
        path = self.output / REPORT
        errors = {**(read_json(path) or {}), str(index): made.errors}
        write_json(path, errors)

    def finish(self) -> Errors:
        self._rest()
        weight_map = {
            name: self.shard(number).name
            for number in range(self.count + 1)
            for name in SafetensorsFile(self.shard(number)).headers
        }
        sizes = (self.shard(number).stat().st_size for number in range(self.count + 1))
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
        write_json(self.output / INDEX, index)
        for file in _kept(self.opened.folder.path):
            shutil.copyfile(file, self.output / file.name)
        config = {**self.opened.folder.config, "quantization_config": self.method.config()}
        (self.output / HIDDEN).unlink(missing_ok=True)
        write_json(self.output / "config.json", config)
        (self.output / UNFINISHED).unlink()
        return dict(read_json(self.output / REPORT) or {})

    def _rest(self) -> None:
        """All that belongs to no layer: embeddings, the last norm, the head."""
        of_layers = set(_in_layers(self.spec))
        names = [name for name in self.spec.tensors() if name not in of_layers]
        if not self.shard(self.count).exists():
            tensors: dict[str, Dense] = {name: self.opened.weights.tensor(name) for name in names}
            write_safetensors(self.shard(self.count), tensors)


def _in_layers(spec: ModelSpec) -> Iterator[str]:
    for layer in spec.layers:
        yield from _plain_names(layer)
        for stage in stages_of(layer):
            yield from (f"{linear.name}.weight" for linear in stage.specs)


def _plain_names(layer: LayerSpec) -> Iterator[str]:
    """The layer's tensors that stay as they are, or are only scaled: norms and biases."""
    attention = layer.attention
    norms = (layer.pre_attention, layer.post_attention, layer.pre_mlp, layer.post_mlp)
    for norm in (*norms, attention.q_norm, attention.k_norm):
        if norm is not None:
            yield from (name for name, _ in norm.tensors())
    for stage in stages_of(layer):
        yield from (f"{linear.name}.bias" for linear in stage.specs if linear.bias)


def _kept(folder: Path) -> list[Path]:
    return sorted({file for pattern in KEPT for file in folder.glob(pattern) if file.is_file()})
