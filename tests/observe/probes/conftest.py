"""Views of small models, without a training run around them."""

import jax
import jax.numpy as jnp
import pytest

from reslab.core.layout import layouts
from reslab.core.taps import TAPS
from reslab.core.trees import unbox
from reslab.models.lm import LanguageModel
from reslab.observe.probes._view import View
from reslab.observe.watch import watching_stream_gradient


def mean_loss(model, params, tokens):
    """The mean loss of each next token."""
    losses, _ = model.apply(
        {"params": params}, tokens[:, :-1], tokens[:, 1:], method="losses"
    )
    return jnp.mean(losses)


@pytest.fixture(scope="session")
def view_of():
    """Builds the view of a model on tokens; its update is minus the gradient."""

    def build(model, params, tokens, is_counted=None):
        def forward():
            _, taps = model.apply(
                {"params": params}, tokens, method="hidden", mutable=[TAPS]
            )
            return taps[TAPS]

        def forward_alone():
            documents = jnp.broadcast_to(1 + jnp.arange(tokens.shape[1]), tokens.shape)
            _, taps = model.apply(
                {"params": params},
                tokens,
                positions=jnp.zeros_like(tokens),
                segments=documents,
                method="hidden",
                mutable=[TAPS],
            )
            return taps[TAPS]

        def gradient(slots, sites):
            def objective(params, slots):
                with watching_stream_gradient(slots, sites):
                    return mean_loss(model, params, tokens)

            return jax.grad(objective, argnums=(0, 1))(params, slots)

        first = jnp.broadcast_to(jnp.arange(tokens.shape[1]) == 0, tokens.shape)
        everything = jnp.ones(tokens.shape, bool)
        return View(
            params=params,
            layouts=layouts(
                jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
            ),
            # As if the momentum were the parameters.
            opt_state={"momentum": params},
            is_counted=everything if is_counted is None else is_counted,
            is_first=first,
            forward=forward,
            read_out=lambda x: model.apply({"params": params}, x, method="read_out"),
            loss=lambda: mean_loss(model, params, tokens),
            gradient=gradient,
            update=lambda gradient: jax.tree.map(jnp.negative, gradient),
            forward_alone=forward_alone,
        )

    return build


@pytest.fixture(scope="session")
def small_model():
    """Builds a small model with some parts changed, its parameters and tokens."""

    def build(**parts):
        fields = {"depth": 3, "mixer": "attention(heads=2)"} | parts
        model = LanguageModel(vocabulary_size=13, features=8, **fields)
        tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 13)
        params = unbox(model.init(jax.random.key(0), tokens))["params"]
        return model, params, tokens

    return build
