"""The parts of a model: nine families, one variant a file."""
