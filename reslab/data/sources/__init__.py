"""Where documents come from: one source a file, named by its file."""
