"""What a run shows: metrics, speed, progress, cost and surroundings."""
