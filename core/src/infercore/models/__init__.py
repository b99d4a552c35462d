"""Model families: each turns its `config.json` into a ModelSpec. No torch in here."""
