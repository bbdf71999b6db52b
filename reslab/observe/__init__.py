"""Observation of runs: metrics, speed, progress, cost and environment."""
