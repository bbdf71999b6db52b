"""RecurrentGemma: two layers of gated recurrence for one of local attention.

`recurrent_gemma:published` is the one called 2B.
"""

from typing import Literal

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config(size: Literal["tiny", "published"] = "tiny") -> ConfigDict:
    """Returns the config of a size."""
    is_tiny = size == "tiny"
    config = load("base" if is_tiny else "pod_1b")
    model = config.model
    heads, model.features, model.depth = (4, 128, 6) if is_tiny else (10, 2560, 26)
    window, hidden = (32, 384) if is_tiny else (2048, 7680)
    recurrent = f"rg_lru(heads={heads},use_bias=True)"
    local = f"heads={heads},kv_heads=1,window={window},use_output_bias=True"
    local = f"attention({local})"
    model.mixer = (recurrent, recurrent, local)
    model.ffn = f"geglu(hidden={hidden},use_bias=True)"
    model.post_embedding_norm = "none"
    model.position = "rope(fraction=0.5)"
    # The root of the width, as the class rounds it to bfloat16.
    model.embedding_scale = 11.3125 if is_tiny else 50.5
    model.tie_embeddings = True
    model.logit_softcap = 30.0
    if not is_tiny:
        model.vocabulary_multiple = 256_000
        config.data.batch = 64
    if is_tiny:
        config.train.steps = 300
    return config
