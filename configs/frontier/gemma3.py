"""Gemma 3: norms around every sublayer, five windows for one layer that sees all.

`gemma3:published` is the text model of 4 billion parameters.
"""

from typing import Literal

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config(size: Literal["tiny", "published"] = "tiny") -> ConfigDict:
    """Returns the config of a size."""
    is_tiny = size == "tiny"
    config = load("base" if is_tiny else "pod_1b")
    model = config.model
    heads, model.features, model.depth = (4, 128, 6) if is_tiny else (8, 2560, 34)
    window, head = (32, 32) if is_tiny else (1024, 256)
    shape = f"heads={heads},kv_heads={heads // 2},head_dim={head},qk_norm='rms'"
    near = f"attention({shape},window={window},position='rope')"
    far = f"attention({shape},position='rope(base=1e6,scaling=\"linear\",factor=8.0)')"
    model.mixer = (near,) * 5 + (far,)
    model.ffn = f"geglu(hidden={4 * model.features})"
    model.placement = "sandwich"
    model.position = model.post_embedding_norm = "none"
    model.embedding_scale = model.features**0.5
    model.tie_embeddings = True
    if not is_tiny:
        model.vocabulary_multiple = 262_144
        config.data.batch = 64
    if is_tiny:
        config.train.steps = 300
    return config
