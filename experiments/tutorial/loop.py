"""A training loop to fork: reslab's model, data and optimizer, and nothing else.

    python experiments/tutorial/loop.py

Prints the loss in nats per token every ten steps.
"""

import sys

import jax
import jax.numpy as jnp
import optax

from reslab.core.trees import unbox
from reslab.data.batches import TrainBatches
from reslab.data.corpus import load_corpus
from reslab.data.windows import WindowSource
from reslab.models.lm import LanguageModel
from reslab.optim.muon import build as muon

STEPS, BATCH, LENGTH = 100, 16, 64

corpus = load_corpus("synthetic(documents=200)", "bytes")
batches = TrainBatches(WindowSource(corpus.train, LENGTH), BATCH, seed=0)
model = LanguageModel(
    vocabulary_size=corpus.tokenizer.vocabulary_size,
    features=64,
    depth=4,
    mixer="attention(heads=4)",
    residual="hyper(streams=2)",
    max_length=LENGTH,
)
params = unbox(model.init(jax.random.key(0), jnp.zeros((1, LENGTH), jnp.int32)))
optimizer = optax.chain(optax.clip_by_global_norm(1.0), muon(0.01))
state = optimizer.init(params)


@jax.jit
def step(params, state, batch):
    """Takes one step; returns the new parameters and state, and the loss."""

    def loss(params):
        nll, _ = model.apply(
            params,
            batch["tokens"],
            batch["targets"],
            positions=batch["positions"],
            segments=batch["segment_ids"],
            method="losses",
        )
        return jnp.sum(nll * batch["loss_mask"]) / jnp.sum(batch["loss_mask"])

    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value


for number in range(int(sys.argv[1]) if len(sys.argv) > 1 else STEPS):
    params, state, value = step(params, state, next(batches))
    if number % 10 == 0:
        print(f"step {number:3}  loss {value:.3f}", flush=True)
