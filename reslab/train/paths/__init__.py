"""Search for paths through the layers of a trained model, sample by sample."""
