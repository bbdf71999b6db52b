"""`pod_1b` with three layers of Gated DeltaNet for one of attention, for 32 v5e chips.

Command:   reslab train --config configs/pod_1b_gated_delta.py \
             --set data.source="tokens(path='/mnt/reslab/corpus')" \
             --set data.tokenizer="huggingface(path='/mnt/reslab/tokenizer.json')"
Hardware:  v5e:4x8, as `pod_1b`
Expected:  compiled whole with libtpu 0.0.52: 11.9 GiB of 15.75 at the peak;
             reslab compile pod_1b_gated_delta --topology v5e:4x8 (7 minutes)

It has not been trained.
"""

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("pod_1b")
    config.model.mixer = ("gated_delta(heads=16)",) * 3 + ("attention(heads=16)",)
    return config
