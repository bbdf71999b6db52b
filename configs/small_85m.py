"""A decoder of GPT-2 small's size (12 layers of 768), for a TPU or a GPU.

Command:   reslab train --config configs/small_85m.py \
             --set data.source="text(path='/data/*.txt')" \
             --set data.tokenizer="huggingface(path='/data/tokenizer.json')"

As written it has 85 million parameters and trains on the embedded corpus with bytes,
which it soon learns by heart; give it text and a tokenizer. With GPT-2's 50,257 tokens
it has 124 million. It has not been trained here: no loss is
claimed. `reslab compile small_85m --topology v5e:2x4` says what a step needs.
"""

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("base")
    config.model.features = 768
    config.model.depth = 12
    config.model.mixer = "attention(heads=12)"
    config.model.vocabulary_multiple = 128
    config.model.tie_embeddings = True
    config.model.init_std = 0.02
    config.model.remat = "full"  # with "dots" it does not fit eight v5e chips
    config.data.length = 1024
    config.data.batch = 512
    config.optim.learning_rate = 6e-4
    config.optim.schedule = "cosine(warmup=700)"
    config.train.steps = 20_000
    config.train.z_loss = 1e-4
    config.train.checkpoint_every = 1000
    config.train.eval_every = 1000
    config.mesh.data = 1
    config.mesh.fsdp = -1
    return config
