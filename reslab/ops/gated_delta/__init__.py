"""The gated delta rule: an associative memory that forgets and overwrites."""
