"""Qwen3-Next: three layers of gated DeltaNet for one of gated attention; experts.

`qwen3_next:published` has 80 billion parameters, 3 billion of them active.
"""

from typing import Literal

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config(size: Literal["tiny", "published"] = "tiny") -> ConfigDict:
    """Returns the config of a size."""
    is_tiny = size == "tiny"
    config = load("base" if is_tiny else "pod_1b")
    model = config.model
    heads, model.features, model.depth = (4, 128, 4) if is_tiny else (16, 2048, 48)
    head, key = (32, 16) if is_tiny else (256, 128)
    shape = f"heads={2 * heads},key_heads={heads},head_dim={key},value_expansion=1.0"
    delta = f"gated_delta({shape},is_convolution_combined=True)"
    full = f"heads={heads},kv_heads={heads // 4 or 1},head_dim={head},qk_norm='rms'"
    model.mixer = (delta,) * 3 + (f"attention({full},use_output_gate=True)",)
    experts = "8,chosen=2,hidden=64,shared_hidden=64"
    if not is_tiny:
        experts = "512,chosen=10,hidden=512,shared_hidden=512"
        model.vocabulary_multiple = 151_936
        config.mesh.expert = 16
    model.ffn = f"experts(experts={experts},is_shared_gated=True,rate=0.001)"
    model.position = "rope(base=1e7,fraction=0.25)"
    model.post_embedding_norm = "none"
    if is_tiny:
        config.train.steps = 300
    return config
