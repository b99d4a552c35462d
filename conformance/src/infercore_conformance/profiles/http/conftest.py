"""The fixtures of this profile."""

from infercore_conformance.http_fixtures import _llm, host, offline, server

__all__ = ["_llm", "host", "offline", "server"]
