"""A network on images, through the same step, loop and checkpoints as a language."""

import jax
import numpy as np
import pytest

from reslab.cli import main
from reslab.core import config as configs
from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves
from reslab.parallel.mesh import make_mesh, place_on, use_mesh
from reslab.train import loop
from reslab.train.checkpoint import Checkpoints
from reslab.train.probe import Prober
from reslab.train.state import make_setup, restore_variables
from reslab.train.step import make_step

SMALL = {
    "model.features": 8,
    "optim.schedule": "constant(warmup=0)",
    "train.steps": 2,
    "train.eval_every": 2,
    "eval.batch": 120,
    "data.batch": 16,
    "precision.compute": "float32",
}


def small(name="digits_resnet", **changes):
    config = configs.load(name)
    config.model.name = "resnet(stages=1)"
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return configs.update(config, (SMALL | changes).items())


@pytest.mark.conformance
def test_trains_evaluates_and_goes_on(tmp_path):
    result = loop.train(small(), tmp_path / "run")
    assert result["step"] == 2
    assert 0 <= result["eval_accuracy"] <= 1
    assert result["eval_images"] == 360
    assert "images_per_second" in result
    setup = loop.prepare(small())
    with Checkpoints(tmp_path / "run" / "checkpoints", is_read_only=True) as found:
        variables = restore_variables(found, setup)
    updates = named_leaves(variables["batch_stats"])["norm/updates"]
    assert updates == 2


@pytest.mark.conformance
def test_only_norms_learn(tmp_path):
    config = small("digits_norms_only", optim__weight_decay=0.1)
    setup = loop.prepare(config)
    before = named_leaves(setup.init().params)
    loop.train(config, tmp_path / "run")
    with Checkpoints(tmp_path / "run" / "checkpoints", is_read_only=True) as found:
        after = named_leaves(restore_variables(found, setup)["params"])
    learned = {name for name in before if np.any(before[name] != after[name])}
    norms = {name for name in before if name.split("/")[-2].startswith("norm")}
    assert learned == norms
    for name in before.keys() - norms:
        np.testing.assert_array_equal(before[name], after[name])


def test_orthogonality_is_a_term_of_the_objective(tmp_path):
    """Its gradient moves the kernels closer to orthogonal ones, nothing else."""
    from reslab.train.tasks.images import orthogonality

    config = small(train__orthogonality=1.0, optim__learning_rate=1e-2)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    setup = make_setup(config, mesh)
    batch = place_on(mesh)(next(setup.task.train_batches()))
    batch["loss_mask"] = np.zeros_like(batch["loss_mask"])
    batch["loss_mask"][0] = True
    state = setup.init()
    with use_mesh(mesh):
        after, metrics = jax.jit(make_step(setup))(state, batch)
    distance = [orthogonality(setup.model, s.params) for s in (state, after)]
    assert distance[1] < distance[0]
    assert metrics["loss"] < 20, "the term is not in what is reported"


def test_a_field_that_the_model_does_not_have_is_refused():
    config = configs.update(small(), [("model.mixer", "attention(heads=2)")])
    with pytest.raises(ReslabError, match=r"model\.mixer.*has no such field"):
        loop.prepare(config)


@pytest.mark.conformance
def test_probes_of_patches_and_none_of_a_residual_network(capsys):
    setup = loop.prepare(small("digits_vit", model__name="vit(patch=4)"))
    prober = Prober(setup, ["stream", "contribution"])
    batch = place_on(setup.mesh)(next(setup.task.train_batches()))
    found = prober(setup.init(), batch)
    assert len(found["stream/variance"]) == 2 * setup.config.model.depth + 1
    assert np.isfinite(found["contribution/relative"]).all()
    Prober(loop.prepare(small()), ["stream"], is_lenient=True)
    assert "expected sublayers along depth" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["digits_resnet", "digits_vit", "digits_norms_only"])
def test_shipped_configs_are_shown(name, capsys):
    assert main(["show", name]) == 0
    assert "FLOPs per image in training" in capsys.readouterr().out


def test_what_images_cannot_do_is_one_line(tmp_path, capsys):
    (tmp_path / "config.json").write_text(configs.canonical_json(small()))
    for command in (["generate"], ["eval", "--text", "x"]):
        verb, *options = command
        assert main([verb, str(tmp_path), *options]) == 2
        told = capsys.readouterr().err
        assert "expected a language model; got resnet(stages=1)" in told
        assert told.count("\n") == 1


@pytest.mark.conformance
@pytest.mark.parametrize(
    "name, size, stride, pad",
    [("resnet(stages=1)", 3, 1, 1), ("vit(patch=2)", 2, 2, 0)],
)
def test_first_layers_are_preconditioned_by_what_they_read(name, size, stride, pad):
    """In the step of `tract`, by windows cut out here; nothing else is."""
    plain = "sgd(momentum=0.0)"
    moves = {}
    for optimizer in (plain, f"tract(inner={plain!r}, damping=0.1)"):
        config = small(
            model__name=name,
            model__norm="layer",
            optim__name=optimizer,
            optim__weight_decay=0.0,
            optim__clip=0.0,
        )
        setup = make_setup(config, make_mesh({"data": 4, "fsdp": 2, "tensor": 1}))
        batch = place_on(setup.mesh)(next(setup.task.train_batches()))
        state = setup.init()
        before = named_leaves(state.params)
        with use_mesh(setup.mesh):
            after, _ = jax.jit(make_step(setup))(state, batch)
        after = named_leaves(after.params)
        moves[optimizer] = {key: after[key] - before[key] for key in before}
    images = np.asarray(batch["images"], np.float64) / 127.5 - 1
    images = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    starts = range(0, images.shape[1] - size + 1, stride)
    rows = np.stack(
        [
            images[:, top : top + size, left : left + size].reshape(len(images), -1)
            for top in starts
            for left in starts
        ]
    ).reshape(-1, size * size)
    damped = rows.T @ rows / len(rows) + 0.1 * np.eye(size * size)
    ordinary, changed = moves.values()
    first = "embedding" if "vit" in name else "stem/kernel"
    for key in ordinary:
        move = np.asarray(ordinary[key])
        if key == first:
            wanted = np.linalg.solve(damped, move.reshape(size * size, -1))
            move = wanted.reshape(move.shape)
        np.testing.assert_allclose(changed[key], move, rtol=1e-3, atol=1e-6)
