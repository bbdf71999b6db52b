"""The streams of DeepSeek-V4: four, mixed by Sinkhorn's iteration, read at the end.

`deepseek_v4_residuals:published` has the published width, depth and experts. Its
compressed sparse attention is not here: latent attention takes its place.
"""

from typing import Literal

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config(size: Literal["tiny", "published"] = "tiny") -> ConfigDict:
    """Returns the config of a size."""
    is_tiny = size == "tiny"
    config = load("base" if is_tiny else "pod_1b")
    model = config.model
    heads, model.features, model.depth = (4, 128, 4) if is_tiny else (64, 4096, 43)
    ranks = "rank=32,query_rank=64" if is_tiny else "rank=512,query_rank=1024"
    ranks += ",head_dim=32,rope_dim=16" if is_tiny else ",head_dim=128,rope_dim=64"
    model.mixer = f"latent_attention(heads={heads},{ranks})"
    experts = "8,chosen=2,hidden=64,shared_hidden=64"
    if not is_tiny:
        experts = "256,chosen=6,hidden=2048,shared_hidden=2048"
        model.vocabulary_multiple = 129_280
        config.mesh.expert = 32
    experts += ",scores='sqrt_softplus',balance='bias',rate=0.001,scale=1.5"
    model.ffn = f"experts(experts={experts})"
    model.residual = "mhc(weight_epsilon=1e-06,collapse='weighted')"
    model.post_embedding_norm = "none"
    if is_tiny:
        config.train.steps = 300
    return config
