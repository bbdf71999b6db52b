"""Real shapes of attention along depth, for tests and benchmarks."""

# Rows of a history, and readers at once.
READS = {
    "one": {"rows": 1, "readers": 1, "batch": 1, "length": 1, "features": 128},
    "odd": {"rows": 5, "readers": 1, "batch": 2, "length": 21, "features": 200},
    "full_24": {"rows": 49, "readers": 1, "batch": 4, "length": 1024, "features": 1024},
    "full_12": {"rows": 24, "readers": 1, "batch": 4, "length": 2048, "features": 2048},
    "blocks_8": {"rows": 9, "readers": 1, "batch": 4, "length": 2048, "features": 2048},
    "wide": {"rows": 24, "readers": 1, "batch": 2, "length": 2048, "features": 4096},
}

# Finished blocks, and all readers of the next.
BLOCKS = {
    "odd": {"rows": 3, "readers": 4, "batch": 2, "length": 21, "features": 200},
    # Both sublayers of the last layer: of 24 layers, and of 8 blocks.
    "layer_24": {
        "rows": 49,
        "readers": 2,
        "batch": 4,
        "length": 1024,
        "features": 1024,
    },
    "layer_8": {"rows": 9, "readers": 2, "batch": 4, "length": 1024, "features": 1024},
    # 32 sublayers in blocks of 8: the last block reads the embedding and three.
    "last_of_4": {
        "rows": 4,
        "readers": 8,
        "batch": 4,
        "length": 2048,
        "features": 2048,
    },
}

# Outputs of layers, and how many of them are read.
MIXES = {
    "odd": {"rows": 5, "readers": 3, "batch": 2, "length": 21, "features": 200},
    # The layer in the middle.
    "half_of_24": {
        "rows": 25,
        "read": 13,
        "readers": 1,
        "batch": 4,
        "length": 1024,
        "features": 1024,
    },
    "layers_24": {
        "rows": 25,
        "readers": 1,
        "batch": 4,
        "length": 1024,
        "features": 1024,
    },
    # Query, key, value and residual.
    "ways_of_24": {
        "rows": 25,
        "readers": 4,
        "batch": 4,
        "length": 1024,
        "features": 1024,
    },
    "layers_16": {
        "rows": 17,
        "readers": 1,
        "batch": 4,
        "length": 2048,
        "features": 2048,
    },
}
