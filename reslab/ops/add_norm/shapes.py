"""Real shapes of the addition and norm, for tests and benchmarks."""

SHAPES = {
    "one_token": {"batch": 1, "length": 1, "features": 256},
    "odd": {"batch": 3, "length": 37, "features": 200},
    "gpt2_small": {"batch": 8, "length": 1024, "features": 768},
    "llama_1b": {"batch": 4, "length": 2048, "features": 2048},
    "llama_8b": {"batch": 2, "length": 4096, "features": 4096},
}
