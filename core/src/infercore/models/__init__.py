"""Model families: what turns a `config.json` into a ModelSpec. No torch in here."""
