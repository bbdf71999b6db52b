"""Llama 3: pre-norm, rotary grouped-query attention, SwiGLU.

`llama:published` has 8 billion parameters.
"""

from typing import Literal

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config(size: Literal["tiny", "published"] = "tiny") -> ConfigDict:
    """Returns the config of a size."""
    is_tiny = size == "tiny"
    config = load("base" if is_tiny else "pod_1b")
    model = config.model
    heads, model.features, model.depth = (4, 128, 4) if is_tiny else (32, 4096, 32)
    model.mixer = f"attention(heads={heads},kv_heads={heads // 4})"
    model.ffn = f"swiglu(hidden={model.features * 7 // 2})"
    model.norm = "rms(epsilon=1e-05)"
    model.post_embedding_norm = "none"
    model.position = "rope(base=500000.0)"
    if not is_tiny:
        model.vocabulary_multiple = 128_256
        config.data.length, config.data.batch = 8192, 64
    if is_tiny:
        config.train.steps = 300
    return config
