"""Tokenizers, one per file, named by the file."""
