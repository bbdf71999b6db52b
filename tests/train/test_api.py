"""Training, samples and probes from Python, with data and steps of the caller."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reslab
from reslab.cli import main
from reslab.core import config as configs
from reslab.core.errors import ReslabError, printable
from reslab.core.trees import named_leaves
from reslab.train import api, loop
from reslab.train.run import Run
from reslab.train.step import make_step
from reslab.train.tasks import make_task

STEPS = 4
MASKED = {name: np.ones((8, 16), int) for name in ("tokens", "targets")}
MASKED |= {"loss_mask": np.zeros((8, 16), int)}


@pytest.fixture
def config(brief_config):
    return brief_config(optim__schedule="constant")


def tokens(number, config, rows=None):
    """A batch of made-up tokens, one more than a row of the config has."""
    shape = rows or config.data.batch, config.data.length + 1
    return np.random.default_rng(number).integers(1, 200, shape)


def parameters(trained):
    return named_leaves(reslab.load(trained.directory).params)


def assert_same(one, other):
    for name, leaf in parameters(one).items():
        np.testing.assert_array_equal(leaf, parameters(other)[name], err_msg=name)


def test_functions_of_the_package():
    assert {"build", "train", "load", "generate", "inspect"} == {*reslab.__all__}
    assert all(callable(getattr(reslab, name)) for name in reslab.__all__)
    assert reslab.train.__name__ == "reslab.train"
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        _ = reslab.fit


def test_a_notebook_shows_a_mistake_in_one_line():
    error = ReslabError("model.depth", expected="int", got="'four'")
    shown = error._render_traceback_()
    assert shown == ["ReslabError: model.depth: expected int; got 'four'"]


def test_a_model_is_built_as_a_run_begins_it(config):
    built = reslab.build(config, changes={"seed": 7})
    text = np.arange(6)[None] + 65
    logits = built.model.apply(built.variables, text)
    assert logits.shape == (1, 6, built.tokenizer.vocabulary_size)
    setup = loop.prepare(configs.update(config, [("seed", 7)]))
    begun = named_leaves(setup.init().params)
    for name, leaf in named_leaves(built.params).items():
        np.testing.assert_allclose(leaf, begun[name], rtol=1e-6, atol=1e-8)
    (said,) = reslab.generate(built, "ab", length=3, temperature=0)
    assert said.startswith("ab")
    assert config.seed == 7 and reslab.build(config, changes={"seed": 0})
    assert config.seed == 7, "a config that was given is not changed"


def test_refuses_a_model_that_does_not_fit():
    with pytest.raises(ReslabError, match="not enough memory"):
        reslab.build("frontier/kimi_linear:published")


def test_the_command_line_says_the_same(trained, capsys):
    run = trained / "0"
    (text,) = reslab.generate(run, "ab", length=5, seed=3)
    assert main(["generate", str(run), "--prompt", "ab", *("--length", "5")]) == 0
    capsys.readouterr()
    assert main(["generate", str(run), "--prompt", "ab", "--length=5", "--seed=3"]) == 0
    assert capsys.readouterr().out == f"{printable(text)}\n"
    assert reslab.generate(reslab.load(run), "ab", length=5, seed=3) == [text]
    again = reslab.train(Run(run).config(), run)
    assert again.result == Run(run).result() and again.task is None
    assert reslab.train(run, run).result == again.result


@pytest.mark.conformance
def test_batches_of_the_task_given_by_hand_are_the_run(config, tmp_path):
    usual = reslab.train(config, tmp_path / "usual")
    given = [*zip(range(STEPS), make_task(config).train_batches(), strict=False)]
    by_hand = reslab.train(config, tmp_path / "given", batches=(b for _, b in given))
    assert_same(usual, by_hand)
    assert by_hand.result["eval_bpb"] == usual.result["eval_bpb"]
    record = Run(by_hand.directory).recorded()["corpus"]
    assert record["given"]["batches"].startswith("sha256 ")
    for more in (0, 1):  # Ended, or to be resumed.
        changes = {"train.steps": STEPS + more}
        with pytest.raises(ReslabError, match=r"held_out, loss or step.*got none"):
            reslab.train(config, by_hand.directory, changes=changes)
        with pytest.raises(ReslabError, match=r"expected none, as when .*got \{'loss"):
            reslab.train(config, usual.directory, changes=changes, loss=lambda *_: 0)


def test_a_loss_that_fails_leaves_no_run(config, tmp_path):
    def fails(model, variables, batch, key):
        raise KeyError("weights")

    with pytest.raises(KeyError, match="weights"):
        reslab.train(config, tmp_path / "run", loss=fails)
    with pytest.raises(ReslabError, match="the loss of every token"):
        reslab.train(config, tmp_path / "run", loss=lambda *_: jnp.zeros(()))
    assert not (tmp_path / "run").exists()


@pytest.mark.conformance
def test_a_run_on_own_data_goes_on_where_it_was(config, tmp_path):
    held_out = [tokens(99, config, rows=3), tokens(98, config, rows=2)]

    def batch(number):
        return tokens(number, config)

    def run(name, steps, batches):
        return reslab.train(
            config,
            tmp_path / name,
            changes={"train.steps": steps},
            batches=batches,
            held_out=held_out,
        )

    whole = run("whole", STEPS, batch)
    assert whole.result["eval_tokens"] == 5 * config.data.length
    assert "eval_bpb" not in whole.result
    run("parts", 2, map(batch, range(2)))
    assert_same(run("parts", STEPS, map(batch, range(STEPS))), whole)
    # Evaluation and probes afterwards are of the config's own data.
    assert main(["eval", str(whole.directory)]) == 0
    record = reslab.inspect(whole.directory, "stream")[-1]
    assert "stream/norm" in record
    assert record["step"] == STEPS and len(record["stream/norm"]) == 3


@pytest.mark.conformance
def test_a_loss_of_ones_own(config, tmp_path):
    seen = []

    def loss(model, variables, batch, key):
        seen.append(key is not None)
        positions, segments = batch["positions"], batch["segment_ids"]
        logits = model.apply(
            variables, batch["tokens"], positions=positions, segments=segments
        )
        chosen = jnp.take_along_axis(logits, batch["targets"][..., None], axis=-1)
        return jax.nn.logsumexp(logits, axis=-1) - chosen[..., 0]

    usual = reslab.train(config, tmp_path / "usual")
    own = reslab.train(config, tmp_path / "own", loss=loss)
    assert seen and all(seen)
    for name, leaf in parameters(own).items():
        np.testing.assert_allclose(
            leaf, parameters(usual)[name], rtol=1e-3, atol=1e-4, err_msg=name
        )
    given = Run(own.directory).recorded()["corpus"]["given"]
    assert given["loss"].endswith("test_a_loss_of_ones_own.<locals>.loss")


@pytest.mark.conformance
def test_a_step_of_ones_own(config, tmp_path):
    def twice(setup):
        step = make_step(setup)

        def both(state, batch):
            state, _ = step(state, batch)
            state, metrics = step(state, batch)
            return state, {"loss": metrics["loss"], "extra": metrics["loss"] + 1}

        return both

    own = reslab.train(config, tmp_path / "own", step=twice)
    rows = loop.Run(own.directory).directory / "metrics.jsonl"
    assert '"extra"' in rows.read_text()
    batches = [
        b for b, _ in zip(make_task(config).train_batches(), range(4), strict=False)
    ]
    doubled = [batch for batch in batches for _ in range(2)]
    longer = {"train.steps": 2 * STEPS}
    assert_same(
        own,
        reslab.train(config, tmp_path / "usual", changes=longer, batches=doubled),
    )


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([np.ones((2, 3), int)], r"batch 0: expected tokens \(8, 17\), one more than"),
        ([{"tokens": np.ones((8, 16), int)}], r"batch 0: targets: .*; got none"),
        (lambda _: np.full((8, 17), 999), r"t\w+: expected 0 to 256, the vocab.*999"),
        ([np.ones((8, 17), int)], "batches: expected 4, one for each step; got 1"),
        ([], "batches: expected 4, one for each step; got 0"),
        (
            lambda _: {"tokens": np.ones((8, 16), int), "targets": 1, "image": 2},
            r"batch 0: (image|targets): expected",
        ),
        ([np.full((8, 17), 1.5)], "t.*s: expected whole numbers .*; got .*float64"),
        (3, "batches: expected a function of the number .*; got 3"),
        (lambda _: MASKED, "batch 0: loss_mask: expected a token that counts; got onl"),
    ],
)
def test_refuses_batches(batches, message, config, tmp_path):
    with pytest.raises(ReslabError, match=message):
        reslab.train(config, tmp_path / "run", batches=batches)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": "x"}, "loss: expected a function; got 'x'"),
        ({"step": 3}, "step: expected a function; got 3"),
        ({"held_out": []}, "held_out: expected batches alike; got none"),
        ({"held_out": [MASKED]}, "held_out: loss_mask: expected a token that counts"),
        ({"loss": lambda *_: jnp.ones(())}, r"loss: expected .* every token \(8, 16\)"),
        ({"step": lambda _: lambda s, b: (s, {})}, "step: metrics: expected a 'loss'"),
    ],
)
def test_refuses_other_parts(given, message, config, tmp_path):
    with pytest.raises(ReslabError, match=message):
        reslab.train(config, tmp_path / "run", **given)


def test_refuses_a_loss_of_images(tmp_path):
    with pytest.raises(ReslabError, match="loss: expected a language model; got a mod"):
        reslab.train("digits_resnet", tmp_path / "run", loss=lambda *_: 0)
    assert not (tmp_path / "run").exists()


def test_refuses_options_of_samples(trained):
    with pytest.raises(ReslabError, match="samples: expected at least 1; got 0"):
        reslab.generate(trained / "0", samples=0)
    with pytest.raises(ReslabError, match="stop: expected texts, none empty; got 'x'"):
        reslab.generate(trained / "0", stop="x")


@pytest.mark.parametrize(
    ("function", "given", "message"),
    [
        ("load", {"path": 3}, "load: path: expected a path; got 3"),
        ("load", {"path": "x", "mesh": {"fsdp": "4"}}, "mesh: .* texts to whole num"),
        ("build", {"config": None}, "config: expected a ConfigDict or a path; got N"),
        ("build", {"changes": {3: 4}}, "expected a mapping of texts or None; got {3"),
        ("generate", {"source": None}, "source: expected a Loaded or a path; got None"),
        ("generate", {"source": "x", "prompt": b"a"}, "prompt: expected a text or No"),
        ("generate", {"source": "x", "temperature": "hot"}, "expected a number; got"),
        ("inspect", {"run": [1]}, r"inspect: run: expected a path; got \[1\]"),
        ("inspect", {"run": "x", "probes": [3]}, "a text or a sequence of texts or N"),
        ("train", {"directory": 3}, "train: directory: expected a path or None; got 3"),
        ("train", {"watchdog": -1}, "watchdog: expected at least 0 .*; got -1"),
    ],
)
def test_an_argument_of_another_kind_is_one_line(function, given, message):
    with pytest.raises(ReslabError, match=message):
        getattr(reslab, function)(**given)


def test_an_iterator_does_not_go_back(config):
    batches = api.Given(map(lambda n: tokens(n, config), range(9)))
    found = batches.task(config).train_batches()
    first = [next(found) for _ in range(3)]
    found.state = 2 * config.data.batch
    np.testing.assert_array_equal(next(found)["tokens"], first[2]["tokens"])
    found.state = 0
    with pytest.raises(ReslabError, match="to go back; got an iterator"):
        next(found)
