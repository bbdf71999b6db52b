"""Places that metrics are written to; `jsonl` is always among them."""
