"""Pre-training without activation outliers (Park et al., 2025), small.

Command:   reslab train --config configs/outlier_safe.py
Beside it: --set model.norm=rms --set model.post_embedding_norm=rms,
           --set model.use_embedding_projection=False, and
           --set optim.name=adamw --set optim.learning_rate=3e-3
Look at:   reslab inspect RUN --probe kurtosis
Expected:  1.620 bits per byte held out (tiny.py 1.731; which of the changes does it
           was not tried). The stream's excess kurtosis is not lower: it ends at 1.5,
           in tiny.py at 0.3; one seed

One gain for the whole vector instead of one for each feature, a square projection
after the embedding and before the head, Muon for matrices and AdamW for embedding and
head. `kurtosis` is the excess kurtosis of the stream, which outliers drive up.

Reference: Park et al., 2025, https://arxiv.org/abs/2506.19697.
"""

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config() -> ConfigDict:
    """Returns the tiny run with the three changes."""
    config = load("tiny")
    config.model.norm = config.model.post_embedding_norm = "single_scale"
    config.model.use_embedding_projection = True
    config.optim.name = "muon"
    config.optim.learning_rate = 1e-2
    config.probes.names = ("stream", "kurtosis", "massive")
    return config
