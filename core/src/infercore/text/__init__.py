"""Text in and out of token ids: tokenizer, detokenizer, chat template. No torch in here."""
