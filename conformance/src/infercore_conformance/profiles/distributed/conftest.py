"""The fixtures of this profile."""

from infercore_conformance.engine_fixtures import same, serve

__all__ = ["same", "serve"]
