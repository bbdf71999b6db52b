"""A decoder of 8 billion parameters in the form of Llama 3, for 256 v5p chips.

Command:   reslab train --config configs/pod_8b.py \
             --set data.source="tokens(path='/mnt/reslab/corpus')" \
             --set data.tokenizer="huggingface(path='/mnt/reslab/tokenizer.json')"
Hardware:  v5p:8x8x4; parameters over 64 chips, each sublayer over 4
Expected:  compiled whole with libtpu 0.0.52: 11.1 GiB of 95.7 at the peak;
             reslab compile pod_8b --topology v5p:8x8x4 (four minutes)

32 layers of 4,096 with 32 query and 8 key-value heads, hidden width 14,336, 8,192
tokens in a sequence. Bytes as tokens, padded to 131,072 rows, stand for a tokenizer of
128 thousand: they cost the same. It has not been trained.
"""

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("pod_1b")
    config.model.features = 4096
    config.model.depth = 32
    config.model.mixer = "attention(heads=32,kv_heads=8)"
    config.model.position = "rope(base=500000.0)"
    config.model.ffn = "swiglu(hidden=14336)"
    config.model.vocabulary_multiple = 131_072
    config.data.length = 8192
    config.data.batch = 256
    config.mesh.fsdp = -1
    config.mesh.tensor = 4
    return config
