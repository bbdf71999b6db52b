"""Real shapes of the selective scan, for tests and benchmarks."""

SHAPES = {
    "tiny": {"batch": 16, "length": 256, "channels": 256, "states": 16},
    "mamba_1b": {"batch": 8, "length": 4096, "channels": 4096, "states": 16},
}
