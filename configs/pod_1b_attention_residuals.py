"""`pod_1b` with Attention Residuals in blocks of three layers, for 32 v5e chips.

Command:   reslab train --config configs/pod_1b_attention_residuals.py \
             --set data.source="tokens(path='/mnt/reslab/corpus')" \
             --set data.tokenizer="huggingface(path='/mnt/reslab/tokenizer.json')"
Hardware:  v5e:4x8, as `pod_1b`
Expected:  compiled whole with libtpu 0.0.52: 4.8 GiB of 15.75 at the peak;
             reslab compile pod_1b pod_1b_attention_residuals --topology v5e:4x8

Eight sources and the embedding are kept along depth (Kimi Team, 2026,
https://arxiv.org/abs/2603.15031, Block AttnRes). It has not been trained.
"""

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("pod_1b")
    config.model.residual = "attnres(block=6)"
    return config
