"""Real shapes of mixed streams, for tests and benchmarks."""

SHAPES = {
    "odd": {"streams": 2, "batch": 3, "length": 11, "features": 200},
    "small_85m": {"streams": 4, "batch": 8, "length": 1024, "features": 768},
    "llama_1b": {"streams": 4, "batch": 4, "length": 2048, "features": 2048},
    "llama_8b": {"streams": 4, "batch": 2, "length": 2048, "features": 4096},
}
