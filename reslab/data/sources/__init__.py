"""Sources of documents, one per file, named by the file."""
