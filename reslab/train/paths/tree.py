"""Monte Carlo tree search over paths: which layers to leave out, which to repeat."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

Path = tuple[int, ...]

# Exploration, and the price of a path as long as the model.
_EXPLORATION = 1.8
_LENGTH = 3.0
# Share of the choices that are random.
_RANDOM = 0.1
# Layers that one action leaves out, at most.
_SKIPPED = 2
# Applications of a layer, at most.
_REPEATED = 2
# Layers saved that end a search.
_SAVED = 2


class Found(NamedTuple):
    """Outcome of a search.

    Attributes:
      path: The shortest of the paths with the highest score, which is at least the
        model's.
      score: Its score.
      base: The score of the model, every layer once.
      simulations: Paths that were evaluated, beside the model's.
    """

    path: Path
    score: float
    base: float
    simulations: int


def search(
    depth: int,
    evaluate: Callable[[Path], float],
    simulations: int,
    rng: np.random.Generator,
) -> Found:
    """Looks for a path that scores as well as the model and is shorter, or better.

        UCB = R / n + 1.8 sqrt(ln N / n) - 3 length / depth

    A node is a path; an action leaves out one or two neighbouring layers, or repeats
    one, at most twice applied. From the model's own path the search goes to the child
    of the highest bound, or in one of ten choices to any, evaluates a new child, and
    adds its score to all nodes above. A node of n visits has about sqrt(n) children, so
    that a small budget looks at several actions in a row, too. The search ends early
    when a path solves what the model did not (a score of 1), or keeps the score and
    saves two layers.

    Reference: Li et al., 2025, https://arxiv.org/abs/2507.07996, Section 3; constants
    and actions are those that Heakl et al., 2025, https://arxiv.org/abs/2510.12773,
    Section 3.1, use for the same search.

    Args:
      depth: Number of layers.
      evaluate: The score of a path, from 0 to 1.
      simulations: Most paths to evaluate.
      rng: Makes the random choices.
    """
    root = _Node(tuple(range(depth)), None)
    known = {root.path: evaluate(root.path)}
    base = known[root.path]
    root.add(base)
    best = root.path
    while len(known) <= simulations:
        node = _chosen(root, depth, rng)
        if node is None:
            break
        child = node.expand(rng, known)
        if child is None:
            continue
        score = known[child.path] = evaluate(child.path)
        child.add(score)
        # Where nothing is right, no path is better than the model's.
        if score > 0:
            best = max(best, child.path, key=lambda path: (known[path], -len(path)))
        saved = depth - len(child.path)
        if (score >= base > 0 and saved >= _SAVED) or base < 1 <= score:
            break
    return Found(best, known[best], base, len(known) - 1)


class _Node:
    """A path in the tree, with what came of it and its descendants."""

    def __init__(self, path: Path, parent: "_Node | None"):
        self.path, self.parent = path, parent
        self.children: list[_Node] = []
        self.visits, self.total = 0, 0.0
        # Paths that one action makes of this one; drawn when first asked for.
        self.untried: list[Path] | None = None
        self.is_spent = False

    def add(self, score: float) -> None:
        """Adds a score to this node and those above."""
        node: _Node | None = self
        while node is not None:
            node.visits += 1
            node.total += score
            node = node.parent

    def bound(self, depth: int) -> float:
        """The upper confidence bound by which it is chosen among its siblings."""
        assert self.parent is not None
        spread = math.sqrt(math.log(self.parent.visits) / self.visits)
        length = len(self.path) / depth
        return self.total / self.visits + _EXPLORATION * spread - _LENGTH * length

    def expand(self, rng: np.random.Generator, known: dict) -> "_Node | None":
        """Adds a child by an action that was not tried; None if none is left."""
        if self.untried is None:
            self.untried = sorted(set(actions(self.path)))
            rng.shuffle(self.untried)
        while self.untried:
            path = self.untried.pop()
            if path not in known:
                child = _Node(path, self)
                self.children.append(child)
                return child
        self.is_spent = all(child.is_spent for child in self.children)
        return None


def _chosen(root: _Node, depth: int, rng: np.random.Generator) -> _Node | None:
    """Descends to a node with an action to try; None if the tree is spent."""
    node = root
    while not root.is_spent:
        open_ones = [child for child in node.children if not child.is_spent]
        is_wide = len(node.children) ** 2 > node.visits and open_ones
        if (node.untried is None or node.untried) and not is_wide:
            return node
        if not open_ones:
            node.is_spent = True
            node = root
        elif rng.random() < _RANDOM:
            node = open_ones[rng.integers(len(open_ones))]
        else:
            node = max(open_ones, key=lambda child: child.bound(depth))
    return None


def actions(path: Path) -> Iterator[Path]:
    """Yields the paths that one action makes of a path.

    >>> sorted(actions((0, 1)))
    [(0,), (0, 0, 1), (0, 1, 1), (1,)]
    """
    for start in range(len(path)):
        for count in range(1, _SKIPPED + 1):
            end = start + count
            if end <= len(path) and count < len(path):
                yield path[:start] + path[end:]
        if path.count(path[start]) < _REPEATED:
            yield path[: start + 1] + path[start:]


def counts(path: Path, depth: int) -> list[int]:
    """Counts how often each layer of a model is applied along a path.

    >>> counts((0, 2, 2), 3)
    [1, 0, 2]
    """
    return [path.count(layer) for layer in range(depth)]
