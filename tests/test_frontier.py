"""Configs of published designs: their sizes, and the table of their layers."""

import jax
import pytest

from reslab.commands.layers import layer_table
from reslab.core import config as configs
from reslab.core.trees import count_bytes, count_parameters
from reslab.parallel.aot.topology import topology
from reslab.parallel.mesh import device_bytes, make_mesh, use_mesh
from reslab.train.state import check_batch, make_setup
from reslab.train.step import make_step

# Parameters of the published size, in billions, and a slice that it is for.
PUBLISHED = {
    "deepseek_v4_residuals": (281.9, "v5p:8x8x4"),
    "gemma3": (3.88, "v5e:4x4"),
    "glm5_residuals": (313.2, "v5p:8x8x4"),
    "gpt2": (0.1245, "v5e:2x4"),
    "huginn": (3.565, "v5p:2x4x4"),
    "kimi_k3": (365.4, "v5p:8x8x4"),
    "kimi_linear": (49.1, "v5p:4x4x4"),
    "llama": (8.03, "v5e:4x8"),
    "nanochat": (0.561, "v5e:2x4"),
    "olmo2": (7.30, "v5e:4x8"),
    "qwen3_next": (79.7, "v5p:4x4x4"),
    "recurrent_gemma": (2.68, "v5e:4x4"),
}
FILES = [file for folder in configs.folders() for file in folder.glob("frontier/*.py")]


def setup_of(name):
    return make_setup(configs.load(name), make_mesh({}, jax.devices()[:1]))


def test_every_design_is_short_and_has_two_sizes():
    assert {file.stem for file in FILES} == {*PUBLISHED}
    for file in FILES:
        assert len(file.read_text().splitlines()) < 40, file
        for size in ("tiny", "published"):
            configs.check(configs.load(f"{file}:{size}"))
        assert configs.load(str(file)).train.steps == 300


@pytest.mark.conformance
@pytest.mark.tpu_compile
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_size_is_that_and_divides_over_its_slice(name):
    pytest.importorskip("libtpu")
    billions, chips = PUBLISHED[name]
    config, target = configs.load(f"frontier/{name}:published"), topology(chips)
    mesh = make_mesh(config.mesh, target.devices)
    check_batch(config, mesh)
    params = make_setup(config, mesh).shapes.params
    assert count_parameters(params) / 1e9 == pytest.approx(billions, rel=0.002)
    # In one place each, but for gains, taps and scales.
    assert device_bytes(params) <= 1.05 * count_bytes(params) / len(target.devices)


@pytest.mark.conformance
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_step_of_the_tiny_size_is_traced(name):
    setup = setup_of(f"frontier/{name}")
    batch = setup.task.batch_shapes(setup.config.data.batch)
    with use_mesh(setup.mesh):
        state, _ = jax.eval_shape(make_step(setup), setup.shapes, batch)
    assert jax.tree.map(lambda leaf: leaf.shape, state) == jax.tree.map(
        lambda leaf: leaf.shape, setup.shapes
    )


def test_layers_that_are_alike_are_one_row():
    """Three of one kind to one of another, in periods and at the end."""
    config = configs.load("base")
    changes = {"model.depth": 9, "model.features": 32}
    kinds = ("attention(window=8)",) * 3 + ("attention",)
    changes |= {"model.mixer": kinds, "model.ffn": ("gelu",) + ("relu",) * 8}
    configs.update(config, changes.items())
    setup = make_setup(config, make_mesh({}, jax.devices()[:1]))
    table = layer_table(config, setup.shapes.params)
    assert [line.split() for line in table[:4]] == [
        ["layers", "parameters", "mixer", "ffn"],
        ["0", "12,352", "attention(window=8)", "gelu"],
        ["1-2,", "4-6,", "8", "12,352", "attention(window=8)", "relu"],
        ["3,", "7", "12,352", "attention", "relu"],
    ]
    assert table[4] == "9 layers; in all of them:"
    assert "  norm rms" in table and "  residual plain" in table


def test_a_model_without_layers_has_no_table():
    config = configs.load("digits_resnet")
    assert not layer_table(config, {"head": jax.ShapeDtypeStruct((2,), "float32")})
