"""Real shapes of linear attention with a decay, for tests and benchmarks."""

SHAPES = {
    "tiny": {
        "batch": 16,
        "length": 256,
        "heads": 4,
        "groups": 1,
        "key_dim": 64,
        "value_dim": 64,
    },
    "mamba2_1b": {
        "batch": 8,
        "length": 4096,
        "heads": 64,
        "groups": 1,
        "key_dim": 128,
        "value_dim": 64,
    },
}
