"""Opens a checkpoint folder and checks every tensor's name and shape before a byte is read."""

import json
import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

from infercore.errors import CheckpointError
from infercore.kinds import Dense, Kind
from infercore.model_spec import ModelSpec
from infercore.quantization import QuantizationMethod
from infercore.worker.safetensors_file import SafetensorsFile

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SHOWN = 5  # names spelt out in a list before it is shortened

# Published files have the base model's names with or without these.
PREFIXES = ("model.", "transformer.")

# Buffers that older transformers wrote into checkpoints and that hold nothing learnt.
BUFFERS = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|attn\.(bias|masked_bias))")


class Checkpoint:
    """The tensors of a folder's safetensors files, as one `TensorFile`.

    aliases: {name to ask for: name in the file}, where they differ.
    """

    def __init__(self, files: Iterable[SafetensorsFile]) -> None:
        self.files = tuple(files)
        self.aliases: dict[str, str] = {}
        self._home: dict[str, SafetensorsFile] = {}
        for file in self.files:
            for name in file.headers:
                if name in self._home:
                    raise CheckpointError(
                        f"{name} is in both {self._home[name].path} and {file.path}; "
                        "remove the file that does not belong to this model"
                    )
                self._home[name] = file

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: file.headers[name].shape for name, file in self._home.items()}

    def __getitem__(self, name: str) -> Dense:
        stored = self.aliases.get(name, name)
        if stored not in self._home:
            raise CheckpointError(
                f"no tensor named {name} in {', '.join(str(file.path) for file in self.files)}"
            )
        return self._home[stored][stored]

    def release(self) -> None:
        """Give the mapped pages of all files back, once the weights were copied elsewhere."""
        for file in self.files:
            file.release()


class CheckpointWeights:
    """`Weights` over a checkpoint that was found to match its spec."""

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, method: QuantizationMethod) -> None:
        self._checkpoint = checkpoint
        self._method = method
        self._linears = {linear.name: linear for linear in spec.linears()}

    def linear(self, name: str) -> Kind:
        if name not in self._linears:
            raise CheckpointError(f"the model has no linear layer named {name}")
        return self._method.read(self._linears[name], self._checkpoint)

    def tensor(self, name: str) -> Dense:
        return self._checkpoint[name]

    def release(self) -> None:
        """Give the mapped pages back; tensors already handed out stay valid."""
        self._checkpoint.release()


def open_weights(path: Path, spec: ModelSpec, method: QuantizationMethod) -> CheckpointWeights:
    """Open the checkpoint in folder `path` for the model `spec`, stored in `method`'s format.

    Raises CheckpointError for damaged or refused files, and one that names every missing, extra
    and misshapen tensor if the files do not match the spec.
    """
    checkpoint = open_checkpoint(path)
    stored = checkpoint.shapes()
    method.inspect(_under_spec_names(stored, spec))
    expected = method.tensors(spec)
    sources = checkpoint.aliases = _match(stored.keys(), expected, spec)
    known = set(sources.values()) | ({f"{spec.head.name}.weight"} if spec.tied else set())
    shapes = {name: stored[source] for name, source in sources.items()}
    complaints = [
        _listed("missing", [f"{n} {shape}" for n, shape in expected.items() if n not in sources]),
        _listed(
            "not known",
            [f"{n} {stored[n]}" for n in stored if n not in known and not BUFFERS.fullmatch(n)],
        ),
        _listed(
            "of another shape",
            [f"{n} {s} instead of {expected[n]}" for n, s in shapes.items() if s != expected[n]],
        ),
    ]
    if any(complaints):
        raise CheckpointError(
            f"the weights in {path} are not those of its config.json: "
            f"{'; '.join(filter(None, complaints))}. Download the folder again, "
            "or check that config.json belongs to these weights"
        )
    return CheckpointWeights(checkpoint, spec, method)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open the safetensors files of folder `path`: those that its index lists, or all of them."""
    index = path / INDEX
    if index.is_file():
        return _open_sharded(path, index)
    single = path / SINGLE
    names = [single] if single.is_file() else sorted(path.glob("*.safetensors"))
    if not names:
        raise CheckpointError(_no_weights(path))
    return Checkpoint(SafetensorsFile(name) for name in names)


def _open_sharded(path: Path, index: Path) -> Checkpoint:
    weight_map = read_index(index)
    files = sorted(set(weight_map.values()))
    absent = [name for name in files if not (path / name).is_file()]
    if absent:
        raise CheckpointError(
            f"{_listed(f'files of {index} are missing', absent)}; download the folder again"
        )
    shards = {name: SafetensorsFile(path / name) for name in files}
    strays = [n for n, file in weight_map.items() if n not in shards[file].headers]
    if strays:
        where = f"{weight_map[strays[0]]} lacks tensors that {index} puts there"
        raise CheckpointError(f"{_listed(where, strays)}; download the folder again")
    return Checkpoint(shards.values())


def read_index(index: Path) -> dict[str, str]:
    """{tensor: file} of an index. Raises CheckpointError if it is damaged or leaves its folder."""
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        pairs = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f'{index} is no index of the form {{"weight_map": {{tensor: file}}}} '
            f"({error!r}); download it again"
        ) from error
    for name, file in pairs.items():
        # a plain name: nothing that leaves the folder, on any system
        if not re.fullmatch(r"[\w.\-]+\.safetensors", file):
            raise CheckpointError(
                f"{index} puts {name} into {file!r}, which is no plain *.safetensors file name; "
                "do not use this checkpoint unless you know who made it"
            )
    return pairs


def _no_weights(path: Path) -> str:
    pickled = sorted(file.name for pattern in PICKLED for file in path.glob(pattern))
    if not pickled:
        return f"{path} holds no *.safetensors file; check the path, or download the model again"
    return (
        f"{path} holds only pickled weights ({', '.join(pickled[:SHOWN])}), which can run code "
        "when read and are refused; convert them once, where you trust them: python -c "
        '"from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained({str(path)!r}).save_pretrained('converted')\""
    )


def _under_spec_names(
    stored: Mapping[str, tuple[int, ...]], spec: ModelSpec
) -> dict[str, tuple[int, ...]]:
    """What is stored, under its own names and with the base-model prefix of the spec's."""
    prefix = next((p for p in PREFIXES if spec.embedding.startswith(p)), "")
    renamed = {
        prefix + next((name.removeprefix(p) for p in PREFIXES if name.startswith(p)), name): shape
        for name, shape in stored.items()
    }
    return {**renamed, **stored}


def _match(
    stored: AbstractSet[str], expected: Mapping[str, tuple[int, ...]], spec: ModelSpec
) -> dict[str, str]:
    """{expected name: stored name}; they may differ by a base-model prefix or by tying."""
    sources = {name: name for name in expected if name in stored}
    for name in expected.keys() - stored:
        bare = next((name.removeprefix(p) for p in PREFIXES if name.startswith(p)), name)
        candidates = (bare, *(prefix + bare for prefix in PREFIXES))
        source = next((n for n in candidates if n in stored and n not in expected), None)
        if source is not None:
            sources[name] = source
    # of two tied tensors a writer may keep either
    head = f"{spec.head.name}.weight"
    if spec.tied and spec.embedding not in sources and head in stored:
        sources[spec.embedding] = head
    return sources


def _listed(what: str, names: list[str]) -> str:
    """`what: a, b, c and 7 more`, or nothing."""
    if not names:
        return ""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what}: {', '.join(names[:SHOWN])}{rest}"
