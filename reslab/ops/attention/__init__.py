"""Softmax attention: grouped queries, sliding windows, packed documents."""
