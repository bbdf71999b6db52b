"""From files to batches: sources, tokenizers, windows; nothing here knows a model."""
