"""`infercore bench`: what the engine and the server do per second, and where their time goes."""
