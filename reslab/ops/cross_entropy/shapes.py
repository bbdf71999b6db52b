"""Real shapes of the cross-entropy, for tests and benchmarks."""

SHAPES = {
    "tiny": {"tokens": 4096, "embed": 128, "vocabulary": 257},
    "gpt2_small": {"tokens": 8192, "embed": 768, "vocabulary": 50304},
    "llama_8b": {"tokens": 32768, "embed": 4096, "vocabulary": 128256},
}
