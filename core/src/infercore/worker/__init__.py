"""The torch data plane: loads checkpoints, runs steps, samples."""
