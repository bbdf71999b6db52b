"""Kimi Linear: three layers of Kimi Delta Attention for one of latent attention.

`kimi_linear:published` has 48 billion parameters, 3 billion of them active. Latent
attention has no positions.
"""

from typing import Literal

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config(size: Literal["tiny", "published"] = "tiny") -> ConfigDict:
    """Returns the config of a size."""
    is_tiny = size == "tiny"
    config = load("base" if is_tiny else "pod_1b")
    model = config.model
    heads, model.features, model.depth = (4, 128, 5) if is_tiny else (32, 2304, 27)
    norm = model.norm = "rms(epsilon=1e-05)"
    head = 32 if is_tiny else 128
    delta = f"kda(heads={heads},head_dim={head},output_norm='{norm}')"
    ranks = "rank=32,head_dim=32,rope_dim=16" if is_tiny else "rank=512,head_dim=128"
    ranks += "" if is_tiny else ",rope_dim=64"
    latent = f"latent_attention(heads={heads},{ranks})"
    pattern = ((delta,) * 3 + (latent,)) * model.depth
    model.mixer = (*pattern[: model.depth - 1], latent)
    experts = "8,chosen=2,hidden=64,shared_hidden=64"
    if not is_tiny:
        experts = "256,chosen=8,hidden=1024,shared_hidden=1024"
        model.vocabulary_multiple = 163_840
        config.mesh.expert = 16
    experts += ",scores='sigmoid',balance='bias',rate=0.001,scale=2.446"
    dense = f"swiglu(hidden={352 if is_tiny else 9216})"
    model.ffn = (dense,) + (f"experts(experts={experts})",) * (model.depth - 1)
    model.position = model.post_embedding_norm = "none"
    if is_tiny:
        config.train.steps = 300
    return config
