"""The server on this backend: every dialect gives the same answers, and keeps its contract."""
