"""Any residual, placement, norm and block: every pair takes steps, or is refused.

Not every combination is tried but every pair, in as few rows as a greedy search
finds; a model has a row for each layer. Norms and placements, of which there are most,
are left to test_norms_in_placements, which tries them all. A pair that does not fit is
refused in one line when the block is built. Norms over a batch meet placements there;
what they are in a model is tested in test_batch_norms.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.nn.base.norm import needs_batch

KINDS = ("residual", "placement", "norm", "block")
ELSEWHERE = (1, 2)
# Smaller than by default, where it shortens the test.
SPECS = {
    "group": "group(groups=2)",
    "hourglass": "hourglass(bottlenecks=1)",
    "hyper": "hyper(streams=2)",
    "mhc": "mhc(streams=2, iterations=3)",
    "mhc_lite": "mhc_lite(streams=2)",
}
LAYERS = 3  # In one model: deeper ones compile slower than as many more.


def variants(kind):
    names = registry.names(f"{kind}s")
    if kind == "norm":
        # One with an activation is refused anywhere: see test_norms_in_placements.
        builds = {name: registry.module("norms", name).build for name in names}
        names = [n for n in names if not getattr(builds[n], "is_activation", False)]
        # Norms over a batch keep statistics, which the steps here know nothing of.
        names = [n for n in names if not needs_batch(n)]
    return [SPECS.get(name, name) for name in names]


def refusal(row):
    """The message with which a row is refused, or None."""
    chosen = dict(zip(KINDS, row, strict=True))
    try:
        registry.make("blocks", chosen.pop("block"), **chosen, parent=None)
    except ReslabError as error:
        return str(error)
    return None


def pairs_of(row):
    """The pairs of a row: two places and what stands there."""
    return itertools.combinations(enumerate(row), 2)


def covering_rows(values, fits, but=()):
    """Rows that hold every pair of values that fits, and the pairs that do not.

    Greedy: a row starts from the first pair that is missing, and takes at every other
    place the value that brings most missing pairs with it, the first among equals.

    Args:
      values: The values of every place.
      fits: Whether a row may be.
      but: Two places whose pairs are not asked for.

    Returns:
      The rows, and the pairs that no row can hold.
    """
    missing = {
        pair: None
        for places in itertools.combinations(range(len(values)), 2)
        if places != but
        for pair in itertools.product(
            *([(place, value) for value in values[place]] for place in places)
        )
    }
    rows, refused = [], []

    def completed(chosen, places):
        """The best row with what is chosen; its gain is what it adds."""
        if not places:
            row = tuple(chosen[place] for place in range(len(values)))
            return row if fits(row) else None
        place, *rest = places

        def gain(value):
            new = (
                tuple(sorted(((place, value), item), key=lambda one: one[0]))
                for item in chosen.items()
            )
            return sum(pair in missing for pair in new)

        for value in sorted(values[place], key=gain, reverse=True):
            if row := completed({**chosen, place: value}, rest):
                return row
        return None

    while missing:
        pair = next(iter(missing))
        others = [p for p in range(len(values)) if p not in dict(pair)]
        row = completed(dict(pair), others)
        if row is None:
            refused.append(pair)
            del missing[pair]
            continue
        rows.append(row)
        for done in pairs_of(row):
            missing.pop(done, None)
    return rows, refused


ROWS, REFUSED = covering_rows(
    [variants(kind) for kind in KINDS], lambda row: refusal(row) is None, ELSEWHERE
)


def models():
    """The rows of each residual, in models of so many layers."""
    for residual in variants("residual"):
        rows = [row for row in ROWS if row[0] == residual]
        for begin in range(0, len(rows), LAYERS):
            # What mix_ln makes of the first layers does not fit the reversible block.
            chosen = rows[begin : begin + LAYERS]
            yield residual, sorted(chosen, key=lambda row: row[3] == "reversible")


MODELS = list(models())


def parameters():
    """Every model; but one of every other residual takes long enough as it is."""
    known = set()
    for index, (residual, rows) in enumerate(MODELS):
        is_usual = residual not in known and len(known) % 2 == 0
        usual, long = pytest.mark.conformance, pytest.mark.exhaustive
        marks = [usual if is_usual else long]
        known.add(residual)
        yield pytest.param(residual, rows, marks=marks, id=f"{residual}-{index}")


@pytest.mark.parametrize(("residual", "rows"), list(parameters()))
def test_three_steps(residual, rows, small_model, tokens):
    _, placement, norm, block = zip(*rows, strict=True)
    model = small_model(
        residual=residual,
        placement=placement,
        norm=norm,
        block=block,
        depth=len(rows),
        features=8,
        mixer="attention(heads=1)",
        ffn="gelu(hidden=4)",
        position="none",
    )
    tokens = tokens[:2, :5]
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))["params"]
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.asarray(0.3 * random.normal(size=leaf.shape), leaf.dtype),
        shapes,
    )

    def loss(params):
        nll, _ = model.apply(
            {"params": params}, tokens[:, :-1], tokens[:, 1:], method="losses"
        )
        return jnp.mean(nll)

    evaluate, losses = jax.jit(jax.value_and_grad(loss)), []
    for _ in range(3):
        value, gradient = evaluate(params)
        losses.append(float(value))
        gradient = jax.tree.map(np.asarray, gradient)
        squares = [np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient)]
        rate = np.float32(0.05 / (1 + np.sqrt(np.sum(squares))))
        params = jax.tree.map(lambda p, g, rate=rate: p - rate * g, params, gradient)
    assert np.all(np.isfinite(losses))
    assert len(set(losses)) == 3, "nothing was learned"
    for leaf in jax.tree.leaves(params):
        assert np.all(np.isfinite(leaf))


def test_every_pair_is_tried_or_refused():
    tried = {pair for row in ROWS for pair in pairs_of(row)}
    for places in itertools.combinations(enumerate(KINDS), 2):
        numbers = tuple(number for number, _ in places)
        if numbers == ELSEWHERE:
            continue
        for values in itertools.product(*(variants(kind) for _, kind in places)):
            pair = tuple(zip(numbers, values, strict=True))
            assert (pair in tried) != (pair in REFUSED), pair


@pytest.mark.parametrize("pair", REFUSED, ids=str)
def test_what_does_not_fit_is_refused_in_one_line(pair):
    """With the other places as they are where it is not refused for them."""
    names = dict(pair)
    usual = {0: "plain", 1: "pre", 2: "rms", 3: "standard"}
    if names.get(3) == "reversible":
        usual[0] = "reversible"
    row = tuple(names.get(place, usual[place]) for place in usual)
    message = refusal(row)
    assert message is not None
    assert "\n" not in message
    assert "expected" in message
    # Each of the two alone is welcome.
    for place in names:
        alone = tuple(usual[p] if p == place else row[p] for p in usual)
        if alone != row and place != 0:
            assert refusal(alone) is None


def test_the_search_covers_all_pairs_of_a_known_case():
    """Four places of three values: nine rows are the least."""
    values = [list("abc")] * 4
    rows, refused = covering_rows(values, lambda row: True)
    assert not refused
    assert 9 <= len(rows) <= 13
    assert len({pair for row in rows for pair in pairs_of(row)}) == 6 * 9


def test_the_search_goes_around_what_is_refused():
    values = [list("ab"), list("cd"), list("ef")]
    rows, refused = covering_rows(values, lambda row: row[:2] != ("a", "c"))
    assert refused == [((0, "a"), (1, "c"))]
    assert all(row[:2] != ("a", "c") for row in rows)
