"""The supervisor: starts router and engine, watches and restarts them. No torch, no gRPC."""
