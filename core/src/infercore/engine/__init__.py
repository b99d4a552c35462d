"""The control plane: sequences, KV blocks, scheduling, the step loop. No torch in here."""
