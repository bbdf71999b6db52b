"""`pod_1b` with three layers of Gated DeltaNet for one of attention, for 32 v5e chips.

Command:   reslab train --config configs/pod_1b_gated_delta.py \
             --set data.source="tokens(path='/mnt/reslab/corpus')" \
             --set data.tokenizer="huggingface(path='/mnt/reslab/tokenizer.json')"
Hardware:  v5e:4x8, as `pod_1b`
Expected:  nothing is claimed, for it was not compiled whole yet; what a step needs says
             reslab compile pod_1b_gated_delta --topology v5e:4x8

The recurrence goes token by token and keeps its memory for each of them, which is
2.4 GB for a sequence in a layer: a batch is taken in eight parts, so that a chip has
one sequence at a time. It has not been trained.
"""

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("pod_1b")
    config.model.mixer = ("gated_delta(heads=16)",) * 3 + ("attention(heads=16)",)
    config.train.accumulate = 8
    return config
