"""Huginn: a core of layers that is looped a random number of times.

`huginn:published` has 3.5 billion parameters and 132 layers to compute, 4 of them 32
times.
"""

from typing import Literal

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config(size: Literal["tiny", "published"] = "tiny") -> ConfigDict:
    """Returns the config of a size."""
    is_tiny = size == "tiny"
    config = load("base" if is_tiny else "pod_1b")
    model = config.model
    heads, model.features, model.depth = (4, 128, 4) if is_tiny else (55, 5280, 8)
    model.mixer = f"attention(heads={heads})"
    model.ffn = f"swiglu(hidden={352 if is_tiny else 17_920})"
    model.placement = "sandwich(after='addition')"
    loops, ends = (4, 1) if is_tiny else (32, 2)
    model.stack = f"huginn(loops={loops},prelude={ends},coda={ends})"
    model.post_embedding_norm = "none"
    model.position = "rope(base=50000.0)"
    model.embedding_scale = model.features**0.5
    model.tie_embeddings = True
    if is_tiny:
        config.train.steps = 300
    else:
        model.vocabulary_multiple = 65_536
        config.data.length, config.data.batch = 4096, 128
    return config
