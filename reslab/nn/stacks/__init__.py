"""Stacks: how blocks are laid along depth."""
