"""The router: HTTP in, token ids to an engine, text out. No torch, no device."""
