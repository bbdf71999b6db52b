"""Problems: their answers by other means, and the same examples everywhere."""

import hashlib
import itertools

import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.data.problems import Examples, make_problem
from reslab.data.problems.facts import Facts
from reslab.data.problems.hops import Hops
from reslab.data.problems.memory import Memory
from reslab.data.problems.recall import Recall
from reslab.data.problems.selective_copy import SelectiveCopy
from reslab.data.problems.tracking import Tracking, products

# SHA-256 of the first 20 held-out examples, as they were made first.
DIGESTS = {
    "recall": "ac46389052be25ff",
    "hops": "df051ccf1087ddac",
    "tracking": "5ed4771ebf94c1ba",
    "selective_copy": "f126209af2b0dc8b",
    "memory": "6061e8cd0aaec580",
    "facts": "7d9ea0bfee7ed671",
}
NAMES = sorted(registry.names("problems"))


def examples(problem, length, count=40, **options):
    made = Examples(problem, length, 0, **{"is_held_out": True, **options})
    return [made[index] for index in range(count)]


def test_recall_asks_for_the_value_of_a_key():
    for one in examples(Recall(pairs=3, keys=5), 11):
        tokens, graded = one["tokens"].tolist(), np.flatnonzero(one["loss_mask"])
        values = dict(zip(tokens[0:6:2], tokens[1:6:2], strict=True))
        assert graded.tolist() == [6, 7, 8] and len(values) == 3
        for place in graded:
            assert one["targets"][place] == values[tokens[place]]


def test_hops_follow_the_arrows():
    problem = Hops(nodes=5, hops=3, queries=9)
    kinds = set()
    for one in examples(problem, 19):
        tokens = one["tokens"].tolist()
        arrows = {a: b - 5 for a, b in zip(tokens[0:10:2], tokens[1:10:2], strict=True)}
        for place in np.flatnonzero(one["loss_mask"]):
            hop, node = divmod(tokens[place] - 10, 5)
            assert hop == one["kinds"][place]
            kinds.add(hop)
            for _ in range(hop + 1):
                node = arrows[node]
            assert one["targets"][place] == 5 + node
        node, seen = 0, []
        for _ in range(5):
            seen.append(node := arrows[node])
        assert sorted(seen) == list(range(5)) and node == 0  # One cycle of all.
    assert kinds == {0, 1, 2}


@pytest.mark.parametrize(
    "group, size", [("parity", 2), ("z5", 5), ("s3", 6), ("s5", 120)]
)
def test_tracking_multiplies_in_a_group(group, size):
    table = products(group)
    elements = np.arange(size)
    assert table.shape == (size, size)
    np.testing.assert_array_equal(table[0], elements)
    np.testing.assert_array_equal(table[:, 0], elements)
    assert all(len(set(row)) == size for row in table)
    a, b, c = np.random.default_rng(0).integers(0, size, (3, 50))
    np.testing.assert_array_equal(table[table[a, b], c], table[a, table[b, c]])
    assert (group in ("parity", "z5")) == np.array_equal(table, table.T)
    for one in examples(Tracking(group), 8, 5):
        state = 0
        for token, target in zip(one["tokens"], one["targets"], strict=True):
            state = table[state, token]
            assert state == target
    assert one["kinds"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_selective_copy_keeps_the_order():
    for one in examples(SelectiveCopy(symbols=6, count=4), 15):
        tokens = one["tokens"]
        seen = tokens[tokens < 6].tolist()
        assert len(seen) == 4 and (tokens[-4:] == 7).all()
        assert one["targets"][one["loss_mask"]].tolist() == seen
        assert np.flatnonzero(one["loss_mask"]).tolist() == [11, 12, 13, 14]


def test_memory_is_one_table_for_all():
    table = {}
    for one in examples(Memory(facts=20, symbols=8), 9, 200, is_held_out=False):
        for a, b, value in one["tokens"].reshape(3, 3).tolist():
            assert table.setdefault((a, b), value) == value
        assert one["targets"][1::3].tolist() == one["tokens"][2::3].tolist()
    assert len(table) == 20


def test_facts_of_two_hops_keep_kinds_apart():
    problem = Facts(symbols=7, seen=0.6, held_out=0.25)
    kinds = [set(map(tuple, triples.tolist())) for triples in problem.triples]
    assert all(not a & b for a, b in itertools.combinations(kinds, 2))
    first, second = problem._tables
    pairs = {(a, b) for a, b, _ in kinds[0]}
    ends = {(first[a, b], c) for a, b, c in kinds[0]}
    assert not pairs & {(a, b) for a, b, _ in kinds[2]}
    for a, b, c in kinds[3]:
        assert (first[a, b], c) not in ends
    # New compositions are of facts that training has.
    assert {(a, b) for a, b, _ in kinds[1]} <= pairs
    assert {(first[a, b], c) for a, b, c in kinds[1]} <= ends
    share = len(kinds[1]) / (len(kinds[0]) + len(kinds[1]))
    assert 0.15 < share < 0.35
    for one in examples(problem, 4):
        a, b, c = one["tokens"][:3]
        assert one["targets"][2] == second[first[a, b], c]
        assert (a, b, c) in kinds[one["kinds"][2]]
    trained = examples(problem, 4, is_held_out=False)
    assert {one["kinds"][2] for one in trained} == {0}


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_the_same_everywhere(name):
    problem = registry.make("problems", name)
    found = examples(problem, max(24, problem.least_length), 20)
    digest = hashlib.sha256()
    for one in found:
        for key in ("tokens", "targets", "loss_mask", "kinds"):
            digest.update(one[key].astype("<i4").tobytes())
    assert digest.hexdigest()[:16] == DIGESTS[name]


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_in_the_vocabulary_and_seeds_differ(name):
    problem = registry.make("problems", name)
    length = max(24, problem.least_length)
    runs = [examples(problem, length, 30, is_held_out=False)]
    other = Examples(problem, length, 1, is_held_out=False)
    runs.append([other[index] for index in range(30)])
    held_out = [examples(problem, length, 30)]
    held_out.append(
        [Examples(problem, length, 1, is_held_out=True)[i] for i in range(30)]
    )
    for made in (*runs, *held_out):
        for one in made:
            assert one["tokens"].min() >= 0 and one["tokens"].max() < problem.vocabulary
            graded = one["targets"][one["loss_mask"]]
            assert len(graded) and graded.max() < problem.vocabulary
            assert one["kinds"].max() < max(1, len(problem.kinds))
    first, second = ([one["tokens"].tolist() for one in made] for made in runs)
    assert first != second
    first, second = ([one["tokens"].tolist() for one in made] for made in held_out)
    assert first == second


@pytest.mark.parametrize("name", NAMES)
def test_a_length_that_is_too_short_is_one_line(name):
    least = registry.make("problems", name).least_length
    make_problem(name, least)
    with pytest.raises(ReslabError, match=f"at least {least} tokens; got {least - 1}"):
        make_problem(name, least - 1)


def test_facts_leave_something_to_train_on():
    for fields in ({"seen": 0.0}, {"held_out": 1.0}):
        with pytest.raises(ReslabError, match="facts to train on"):
            Facts(**fields)


def test_a_problem_of_ones_own_is_checked():
    class Wrong(Recall):
        vocabulary = 5

    with pytest.raises(ReslabError, match="tokens: expected 0 to 4"):
        make_problem(Wrong, 24)

    class Bare:
        vocabulary = 5

    with pytest.raises(ReslabError, match="an attribute kinds"):
        make_problem(Bare, 24)


def test_examples_end():
    made = Examples(Recall(), 24, 0, is_held_out=True)
    with pytest.raises(IndexError):
        made[len(made)]
