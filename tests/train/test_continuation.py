"""A run that goes on from another."""

import json

import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves
from reslab.data.batches import TrainBatches
from reslab.data.corpus import load_corpus
from reslab.data.windows import WindowSource
from reslab.nn.placements.layer_norm_removal import end
from reslab.train import loop
from reslab.train.checkpoint import Checkpoints
from reslab.train.run import Run
from reslab.train.transform import transform_run

SMALLEST = {"train__steps": 3, "train__checkpoint_every": 3, "model__depth": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_config):
    directory = tmp_path_factory.mktemp("finished") / "run"
    loop.train(small_config(**SMALLEST), directory)
    return directory


def params_of(directory, config, step=None):
    setup = loop.prepare(config)
    shapes = {"params": setup.shapes.params}
    with Checkpoints(directory / "checkpoints", is_read_only=True) as checkpoints:
        return named_leaves(checkpoints.restore_parts(shapes, step)["params"])


@pytest.mark.conformance
def test_goes_on_from_its_parameters_with_its_text(tmp_path, small_config, finished):
    config = small_config(
        **SMALLEST,
        train__continue_from=str(finished),
        data__replay=0.25,
        data__source="synthetic(documents=40)",
        optim__learning_rate=0.0,
    )
    loop.train(config, tmp_path / "next")
    old = params_of(finished, small_config(**SMALLEST))
    for name, leaf in params_of(tmp_path / "next", config).items():
        np.testing.assert_array_equal(leaf, old[name])
    result = json.loads((tmp_path / "next" / "result.json").read_text())
    assert loop.train(config, tmp_path / "next") == result


@pytest.mark.conformance  # The transform and its placement have tests of their own.
def test_layer_norms_are_trained_away(tmp_path, small_config):
    """The recipe from a trained model to one that has no norm."""
    had, without, folded = (tmp_path / name for name in ("had", "without", "folded"))
    loop.train(small_config(**SMALLEST, model__norm="layer"), had)
    config = small_config(
        **SMALLEST,
        train__continue_from=str(had),
        model__norm="removable_layer(removed_at=2, penalty=0.1)",
        model__placement="layer_norm_removal(start=0, ffn_gap=1, mixer_gap=1)",
    )
    assert end(1, start=0, ffn_gap=1, mixer_gap=1) == 2
    loop.train(config, without)
    result = transform_run("remove_layer_norm", without, folded)
    assert result.changes["model.norm"] == "none"
    assert result.logit_difference < 1e-4 * result.largest_logit
    names = params_of(folded, Run(folded).config())
    assert not any("norm" in name for name in names)


def test_a_share_of_the_windows_is_replayed():
    new, old = (
        load_corpus(f"synthetic(documents={n})", "bytes").train for n in (40, 60)
    )
    marked = type(old)(np.full_like(old.tokens, 7), old.starts[:1])
    new, marked = WindowSource(new, 16), WindowSource(marked, 16)
    with TrainBatches(new, 8, 0, others=[(marked, 0.25)]) as batches:
        rows = np.concatenate([next(batches)["tokens"] for _ in range(16)])
        at = batches.state
        later = next(batches)["tokens"]
    is_old = (rows == 7).all(axis=1)
    assert is_old.mean() == 0.25
    with TrainBatches(new, 8, 0, others=[(marked, 0.25)]) as batches:
        batches.state = at
        np.testing.assert_array_equal(next(batches)["tokens"], later)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model__features": 16}, "holds other parameters than the config asks for"),
        ({"train__continue_from": "nowhere"}, "expected a run directory"),
        ({"train__continue_from": "", "data__replay": 0.5}, "a run to continue from"),
        ({"data__replay": 1.0}, "below 1"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    tmp_path, small_config, finished, changes, words
):
    fields = SMALLEST | {"train__continue_from": str(finished)} | changes
    with pytest.raises(ReslabError) as caught:
        loop.train(small_config(**fields), tmp_path / "next")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "next").exists()
