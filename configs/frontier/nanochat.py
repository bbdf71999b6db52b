"""nanochat as in transformers: norms without gains, also after the rotation.

`nanochat:published` has 20 layers. The scales of the stream and the value embeddings
that the program has had since 2026 are left out.
"""

from typing import Literal

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config(size: Literal["tiny", "published"] = "tiny") -> ConfigDict:
    """Returns the config of a size."""
    is_tiny = size == "tiny"
    config = load("base" if is_tiny else "pod_1b")
    model = config.model
    heads, model.features, model.depth = (4, 128, 4) if is_tiny else (10, 1280, 20)
    model.norm = model.post_embedding_norm = norm = "rms(use_gain=False)"
    model.mixer = f"attention(heads={heads},qk_norm='{norm}',is_qk_norm_last=True)"
    model.ffn = f"relu2(hidden={4 * model.features})"
    model.logit_softcap = 15.0
    if not is_tiny:
        model.vocabulary_multiple = 65_536
    if is_tiny:
        config.train.steps = 300
    return config
