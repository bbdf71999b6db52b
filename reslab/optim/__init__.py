"""Optimizers as plain optax transformations, groups of parameters, schedules."""
