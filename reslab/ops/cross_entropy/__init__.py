"""Cross-entropy of a linear head, without holding large logits."""
