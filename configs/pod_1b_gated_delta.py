"""`pod_1b` with three layers of Gated DeltaNet for one of attention, for 32 v5e chips.

Command:   reslab train --config configs/pod_1b_gated_delta.py \
             --set data.source="tokens(path='/mnt/reslab/corpus')" \
             --set data.tokenizer="huggingface(path='/mnt/reslab/tokenizer.json')"
Hardware:  v5e:4x8, as `pod_1b`
Expected:  compiled whole with libtpu 0.0.52: 11.9 GiB of 15.75 at the peak, an MFU
           estimated at 0.28 to 0.29; with model.kernels=pallas 7.7 GiB and 0.42 to
           0.43 (18 minutes of compiling beside other work);
             reslab compile pod_1b_gated_delta --topology v5e:4x8

It has not been trained.
"""

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("pod_1b")
    config.model.mixer = ("gated_delta(heads=16)",) * 3 + ("attention(heads=16)",)
    return config
