"""Processes, files and storage: what runs a model, whatever the model is."""
