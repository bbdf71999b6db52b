"""A decoder of 15.8 billion parameters, for 256 v5e chips.

Command:   reslab train --config configs/pod_16b.py \
             --set data.source="tokens(path='/mnt/reslab/corpus')" \
             --set data.tokenizer="huggingface(path='/mnt/reslab/tokenizer.json')"
Hardware:  v5e:16x16; parameters, gradients and optimizer are split over all of it
Expected:  compiled whole with libtpu 0.0.52: 8.5 GiB of 15.75 at the peak;
             reslab compile pod_16b --topology v5e:16x16 (six minutes)

Estimates of MFU can be judged by this one: MaxText publishes 0.611 for its model of 16
billion on the same slice (v5e-256), which has these shapes: 32 layers of 4,096, 64
heads of 128, hidden width 28,672, six sequences of 2,048 tokens on a chip, every layer
computed again. On this slice the compiler adds up gradients by all-reduce and keeps a
part, where on v5e:4x8 it reduces and scatters: twice the bytes on the wire. It has not
been trained here.
"""

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("pod_1b")
    config.model.features = 4096
    config.model.depth = 32
    config.model.mixer = "attention(heads=64,head_dim=128)"
    config.model.ffn = "swiglu(hidden=28672)"
    config.data.batch = 6 * 256
    return config
