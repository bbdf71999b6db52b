"""Models: parts put together, by name only."""
