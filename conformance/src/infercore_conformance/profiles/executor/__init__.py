"""Each call of the Executor contract, and the rules on what is in flight."""
