"""Real shapes of the gated delta rule, for tests and benchmarks."""

SHAPES = {
    "tiny": {"batch": 16, "length": 256, "heads": 4, "key_dim": 32, "value_dim": 32},
    "gated_deltanet_1b": {
        "batch": 8,
        "length": 4096,
        "heads": 6,
        "key_dim": 256,
        "value_dim": 512,
    },
}
