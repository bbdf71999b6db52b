"""Fine-tunes the LayerNorms of a trained model away (Baroni et al., 2025), small.

Command:   reslab train --config configs/tiny.py --set model.norm=layer --run RUN
           reslab train --config remove_layer_norm --continue-from RUN --run WITHOUT
           reslab transform remove_layer_norm WITHOUT --out FOLDED
Look at:   the summary of the second command, which has the held-out loss of RUN beside
           its own; the third says how far the logits of FOLDED, a model without any
           norm, are from those of WITHOUT.

Expected:  1.826 bits per byte held out for RUN, 1.766 for WITHOUT, which has trained
           half as long again, and for FOLDED. No run has trained as long with its
           norms, so what leaving them out costs is not known; one seed

From step 20 on one norm after the other divides by the average of its deviation
instead of each token's own: the feed-forward layers' from below, the mixers', the
final one. Until then the final one adds the variance of its deviations to the loss.

Reference: Baroni et al., 2025, https://arxiv.org/abs/2507.02559; their gaps for
GPT-2 small, their learning rate over the peak of pre-training.
"""

from ml_collections import ConfigDict

from reslab.core.config import load
from reslab.nn.placements.layer_norm_removal import end


def get_config() -> ConfigDict:
    """Returns the tiny run's model with norms that go, for half as many steps."""
    config = load("tiny")
    last = end(config.model.depth, start=20, ffn_gap=2, mixer_gap=5)
    config.model.norm = f"removable_layer(removed_at={last}, penalty=0.1)"
    config.model.placement = "layer_norm_removal(start=20, ffn_gap=2, mixer_gap=5)"
    # Every norm goes.
    config.model.post_embedding_norm = "none"
    config.model.mixer = "attention(heads=4)"
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine(warmup=25)"
    config.train.steps = 300
    return config
