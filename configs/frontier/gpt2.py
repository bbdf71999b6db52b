"""GPT-2: pre-norm with biases, learned positions, tied embeddings.

`gpt2:published` is the smallest one, of 124 million parameters.
"""

from typing import Literal

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config(size: Literal["tiny", "published"] = "tiny") -> ConfigDict:
    """Returns the config of a size."""
    is_tiny = size == "tiny"
    config = load("base" if is_tiny else "pod_1b")
    model = config.model
    heads, model.features, model.depth = (4, 128, 4) if is_tiny else (12, 768, 12)
    model.mixer = f"attention(heads={heads},use_bias=True)"
    model.ffn = f"gelu(hidden={4 * model.features},use_bias=True)"
    model.norm = "layer(epsilon=1e-05)"
    model.post_embedding_norm = "none"
    model.position = "learned"
    model.tie_embeddings = True
    if not is_tiny:
        model.vocabulary_multiple = 50_304
        config.data.length = 1024
    if is_tiny:
        config.train.steps = 300
    return config
