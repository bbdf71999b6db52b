"""Real shapes of attention, for tests and benchmarks."""

SHAPES = {
    "tiny": {"batch": 16, "length": 256, "heads": 4, "kv_heads": 4, "head_dim": 64},
    "gpt2_small": {
        "batch": 8,
        "length": 1024,
        "heads": 12,
        "kv_heads": 12,
        "head_dim": 64,
    },
    "llama_8b": {
        "batch": 4,
        "length": 8192,
        "heads": 32,
        "kv_heads": 8,
        "head_dim": 128,
    },
    "gemma_2b": {
        "batch": 4,
        "length": 4096,
        "heads": 8,
        "kv_heads": 1,
        "head_dim": 256,
    },
}
