"""Kimi K3: attention residuals over blocks of layers, on Kimi Delta Attention.

`kimi_k3:published` is a slice of its 93 layers: 13, a block of 12 and one of the next.
"""

from typing import Literal

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config(size: Literal["tiny", "published"] = "tiny") -> ConfigDict:
    """Returns the config of a size."""
    is_tiny = size == "tiny"
    config = load("base" if is_tiny else "pod_1b")
    model = config.model
    heads, head, model.features = (4, 32, 128) if is_tiny else (96, 128, 7168)
    norm, model.depth = "rms(epsilon=1e-05)", 13
    gates = f"lower_bound=-5.0,is_gate_low_rank=False,output_norm='{norm}'"
    delta = f"kda(heads={heads},head_dim={head},{gates})"
    ranks = "rank=32,query_rank=64" if is_tiny else "rank=512,query_rank=1536"
    ranks += f",head_dim={head},rope_dim={head // 2},use_output_gate=True"
    latent = f"latent_attention(heads={heads},{ranks})"
    model.mixer = ((delta,) * 3 + (latent,)) * 3 + (latent,)
    experts = "8,chosen=2,hidden=64,shared_hidden=64,latent=64"
    if not is_tiny:
        experts = "896,chosen=16,hidden=3072,shared_hidden=6144,latent=3584"
        model.vocabulary_multiple = 163_840
        config.mesh.expert = 16
    experts += ",form='situ_glu',scores='sigmoid',balance='bias',rate=0.001"
    dense = f"situ_glu(hidden={512 if is_tiny else 33_792})"
    model.ffn = (dense,) + (f"experts(experts={experts})",) * 12
    model.residual = f"attnres(block_layers={3 if is_tiny else 12},epsilon=1e-05)"
    model.norm = norm
    model.position = model.post_embedding_norm = "none"
    if is_tiny:
        config.train.steps = 300
    return config
