"""OLMo 2: norms after the sublayer and before the addition, and of all queries.

`olmo2:published` has 7 billion parameters.
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
    norm = "rms(epsilon=1e-06)"
    model.mixer = f"attention(heads={heads},qk_norm='{norm}',qk_norm_axis='width')"
    model.ffn = f"swiglu(hidden={352 if is_tiny else 11_008})"
    model.norm = norm
    model.placement = "res_post"
    model.post_embedding_norm = "none"
    model.position = "rope(base=500000.0)"
    if not is_tiny:
        model.vocabulary_multiple = 100_352
        config.data.length, config.data.batch = 4096, 128
    if is_tiny:
        config.train.steps = 300
    return config
