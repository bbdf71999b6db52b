"""A decoder of 1.3 billion parameters (24 layers of 2,048), for 32 v5e chips.

Command:   reslab train --config configs/pod_1b.py \
             --set data.source="tokens(path='/mnt/reslab/corpus')" \
             --set data.tokenizer="huggingface(path='/mnt/reslab/tokenizer.json')"
Hardware:  v5e:4x8; parameters, gradients and optimizer are split over all of it
Expected:  compiled whole with libtpu 0.0.52: 3.4 GiB of 15.75 at the peak;
             reslab compile pod_1b --topology v5e:4x8 (four minutes)

Bytes as tokens, padded to 32,768 rows, stand for a tokenizer of that size: they cost
the same. It has not been trained: no loss is claimed.
"""

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("base")
    config.model.features = 2048
    config.model.depth = 24
    config.model.mixer = "attention(heads=16)"
    config.model.vocabulary_multiple = 32_768
    config.model.init_std = 0.02
    config.model.remat = "full"
    config.data.length = 2048
    config.data.batch = 256
    config.optim.learning_rate = 3e-4
    config.optim.schedule = "cosine(warmup=2000)"
    config.train.steps = 50_000
    config.train.z_loss = 1e-4
    config.train.checkpoint_every = 1000
    config.train.eval_every = 1000
    config.eval.batch = 256
    config.mesh.data = 1
    config.mesh.fsdp = -1
    return config
