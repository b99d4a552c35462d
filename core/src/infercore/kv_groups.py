"""Which layers share a block table: for executors that build their cache from a ModelSpec."""

from infercore.errors import UnsupportedModel
from infercore.executor import GroupKind, KVGroup, KVGroups
from infercore.model_spec import ModelSpec


def kv_groups(spec: ModelSpec, block_size: int, itemsize: int) -> KVGroups:
    """One group per distinct window. Raises UnsupportedModel if a group's heads differ.

    itemsize: bytes of a number in the KV cache.
    """
    layers: dict[int | None, list[int]] = {}
    for index, layer in enumerate(spec.layers):
        layers.setdefault(layer.attention.window, []).append(index)
    groups = []
    for window, members in layers.items():
        shapes = {
            (spec.layers[i].attention.num_kv_heads, spec.layers[i].attention.head_dim)
            for i in members
        }
        if len(shapes) != 1:
            raise UnsupportedModel(
                f"{spec.architecture}: layers {members} share a cache, so their KV heads and head "
                f"sizes must be equal; they are {sorted(shapes)}"
            )
        heads, dim = shapes.pop()
        groups.append(
            KVGroup(
                name="full" if window is None else f"window{window}",
                kind=GroupKind.FULL if window is None else GroupKind.WINDOW,
                layers=tuple(members),
                block_size=block_size,
                bytes_per_block=2 * len(members) * heads * dim * itemsize * block_size,
                window=window,
            )
        )
    return tuple(groups)
