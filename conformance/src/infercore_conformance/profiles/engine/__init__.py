"""Core's engine on the backend: what must not change an answer, and that everything ends once."""
