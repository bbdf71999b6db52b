"""Real shapes of the delta rule, for tests and benchmarks."""

SHAPES = {
    "odd": {"batch": 1, "length": 130, "heads": 2, "key_dim": 24, "value_dim": 40},
    "pod_1b": {
        "batch": 4,
        "length": 2048,
        "heads": 16,
        "key_dim": 96,
        "value_dim": 192,
    },
    "head_128": {
        "batch": 4,
        "length": 2048,
        "heads": 16,
        "key_dim": 128,
        "value_dim": 128,
    },
}
