"""The delta rule: an associative memory that forgets and overwrites."""
