"""Small language models by the fields of their configs, for tests of transforms."""

import jax
import numpy as np

from reslab.core import config as configs
from reslab.core.depth import arrange_layers, block_layers
from reslab.core.trees import map_named, named_leaves, unbox
from reslab.models.lm import LanguageModel

TOKENS = np.random.default_rng(0).integers(0, 11, (2, 6), dtype=np.int32)


def flat(base, **changes):
    """The fields of a config."""
    config = configs.update(configs.load("base"), base.items())
    return dict(configs.flatten(configs.update(config, changes.items())))


def model_of(fields):
    """The model that they describe."""
    parts = {
        key.removeprefix("model."): value
        for key, value in fields.items()
        if key.startswith("model.") and key not in ("model.loop", "model.name")
    }
    return LanguageModel(vocabulary_size=11, max_length=8, **parts)


def shapes_of(fields):
    """Shapes of its parameters."""
    shapes = jax.eval_shape(model_of(fields).init, jax.random.key(0), TOKENS)
    return unbox(shapes)["params"]


def drawn(fields):
    """Its parameters, all of them drawn."""
    random = np.random.default_rng(1)
    return map_named(
        lambda name, leaf: 0.4 * random.normal(size=leaf.shape).astype(np.float32),
        shapes_of(fields),
    )


def converted(transform, fields, params, **options):
    """The new model's fields, and its parameters in its own scans."""
    new, changes = transform.build({"params": params}, fields, **options)
    fields, new = fields | changes, new["params"]
    shapes = shapes_of(fields)
    arranged = arrange_layers(new, block_layers(new), shapes, block_layers(shapes))
    found, wanted = named_leaves(arranged), named_leaves(shapes)
    assert {k: v.shape for k, v in found.items()} == {
        k: v.shape for k, v in wanted.items()
    }
    return fields, arranged


def logits(fields, params):
    """What it says of `TOKENS`."""
    return jax.jit(model_of(fields).apply)({"params": params}, TOKENS)
