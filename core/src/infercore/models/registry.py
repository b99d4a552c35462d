"""Which family builds which architecture."""

from collections.abc import Mapping, Sequence
from typing import Any

from infercore.errors import PluginError, UnsupportedModel
from infercore.model_spec import ModelFamily, ModelSpec


class ModelRegistry:
    """{architecture: family}, from all the families that plugins brought.

    Raises PluginError if two families claim one architecture.
    """

    def __init__(self, families: Sequence[ModelFamily]) -> None:
        self._families: dict[str, ModelFamily] = {}
        for family in families:
            for architecture in family.architectures:
                other = self._families.setdefault(architecture, family)
                if other is not family:
                    raise PluginError(
                        f"the model families {other.name!r} and {family.name!r} both claim "
                        f"{architecture}; uninstall the plugin of one of them"
                    )

    @property
    def architectures(self) -> tuple[str, ...]:
        return tuple(sorted(self._families))

    def build(self, config: Mapping[str, Any]) -> ModelSpec:
        """The spec of a `config.json`. Raises UnsupportedModel for what no family serves."""
        given = config.get("architectures")
        if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != 1:
            raise UnsupportedModel(
                f"config.json: architectures is {given!r}; it must name one of "
                f"{', '.join(self.architectures)}"
            )
        family = self._families.get(given[0])
        if family is None:
            raise UnsupportedModel(
                f"no model family serves {given[0]!r}; known architectures are "
                f"{', '.join(self.architectures)}"
            )
        return family.build(config)
