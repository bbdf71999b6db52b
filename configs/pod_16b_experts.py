"""A decoder of 16.0 billion parameters, 3.0 of them active, for 32 v5e chips.

Command:   reslab train --config configs/pod_16b_experts.py \
             --set data.source="tokens(path='/mnt/reslab/corpus')" \
             --set data.tokenizer="huggingface(path='/mnt/reslab/tokenizer.json')"
Hardware:  v5e:4x8; two experts of each layer on each chip, to which tokens come;
           batch and all other parameters are split over all of it
Expected:  compiled whole with jax 0.10.2, libtpu 0.0.52: 11.3 GiB of 15.75 at the
             peak, an estimated MFU of 0.31 to 0.37, of the active parameters' FLOPs;
             reslab compile pod_16b_experts --topology v5e:4x8 (a quarter of an hour
             on two busy cores)

The sizes are those of Moonlight-16B-A3B (Moonshot AI, 2025, arXiv 2502.16982): 27
layers of 2,048, the first dense, then 64 experts of 1,408 of which a token asks 6, and
a shared one twice as wide; attention is the ordinary kind. An expert takes at most 1.25
times its share of a row. It has not been trained: no loss is claimed.
"""

from ml_collections import ConfigDict

from reslab.core.config import load

EXPERTS = (
    "experts(experts=64,chosen=6,hidden=1408,shared_hidden=2816,scores='sigmoid',"
    "balance='bias',rate=0.001,scale=2.446,capacity=1.25)"
)


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("pod_1b")
    config.model.depth = 27
    config.model.ffn = ("swiglu(hidden=11264)", *(EXPERTS,) * 26)
    config.model.vocabulary_multiple = 163_840
    config.data.batch = 128
    config.mesh.fsdp = 1
    config.mesh.expert = -1
    return config
