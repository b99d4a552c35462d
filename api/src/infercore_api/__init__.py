"""InferCore's supervisor, router and command line."""
