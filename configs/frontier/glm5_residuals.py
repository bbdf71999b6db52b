"""The streams of GLM-5: four, mixed by Sinkhorn's iteration, averaged at the end.

`glm5_residuals:published` has the published width, depth and experts. Its latent
attention reads every token: the sparse index is not here.
"""

from typing import Literal

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config(size: Literal["tiny", "published"] = "tiny") -> ConfigDict:
    """Returns the config of a size."""
    is_tiny = size == "tiny"
    config = load("base" if is_tiny else "pod_1b")
    model = config.model
    heads, model.features, model.depth = (4, 128, 4) if is_tiny else (64, 4096, 45)
    norm = model.norm = "rms(epsilon=1e-05)"
    delta = f"heads={heads},head_dim={32 if is_tiny else 128},lower_bound=-5.0"
    delta = f"kda({delta},output_norm='{norm}')"
    ranks = "rank=32,query_rank=64" if is_tiny else "rank=512,query_rank=1536"
    ranks += f",head_dim={32 if is_tiny else 256},rope_dim=0,latent_norm='{norm}'"
    model.mixer = (delta,) * 3 + (f"latent_attention(heads={heads},{ranks})",)
    experts = "8,chosen=2,hidden=64,shared_hidden=64"
    if not is_tiny:
        experts = "288,chosen=8,hidden=2048,shared_hidden=2048"
        model.vocabulary_multiple = 154_880
        config.mesh.expert = 32
    experts += ",scores='sigmoid',balance='bias',rate=0.001,scale=2.5"
    dense = f"swiglu(hidden={352 if is_tiny else 12_288})"
    sparse, first = f"experts(experts={experts})", 1 if is_tiny else 3
    model.ffn = (dense,) * first + (sparse,) * (model.depth - first)
    model.residual = "mhc(weight_epsilon=1e-06,epsilon=1e-05,collapse='mean')"
    model.position = model.post_embedding_norm = "none"
    if is_tiny:
        config.train.steps = 300
    return config
