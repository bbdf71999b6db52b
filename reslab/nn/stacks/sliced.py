"""Sliced recursion: a layer several times, in groups of tokens (Shen et al., 2021)."""

from typing import Annotated

from reslab.core.bounds import Bounds, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.nn.stacks._loops.span import BlockFactory
from reslab.nn.stacks._slicing import sliced
from reslab.nn.stacks.uniform import UniformStack

_GROUPS = Bounds(least=1)


@bounded
class SlicedStack(UniformStack):
    """Applies each layer several times, and a feed-forward layer of its own after each.

        x = layer(x) within groups of neighbouring tokens
        x = a x + b gelu(norm(x) . W_1 + b_1) . W_2 + b_2

    for each number in `groups`: layer 0 so often, then layer 1, and so on. Mixers see
    their own group alone, which costs 1/groups of the products between tokens. From
    the second application on, tokens are permuted before they are grouped and put
    back after: by a permutation drawn at every step of training, and one that is fixed
    by layer and application when evaluated.

    The layer itself, its norms and residuals included, is shared by its applications.
    The authors' layers have residual "weighted", norm "layer", and biases. Grouping is
    for models that read both ways, as `vit`; of one group, any.

    Reference: Shen, Liu & Xing, 2021, https://arxiv.org/abs/2111.05297, Sections 3.2
    to 3.4. Checked against the authors' blocks. They permute at random when evaluated,
    too.

    Attributes:
      groups: Groups of tokens in each application.
      projection_hidden: Hidden width of what follows each; 0 is the features.
      (and those of `UniformStack`)

    Raises:
      ReslabError: If groups do not divide the tokens, the model is causal or has a
        depth memory and there are several, a norm takes statistics of a batch, or the
        residual keeps a history.
    """

    groups: Annotated[tuple[int, ...], _GROUPS] = (1, 1)
    projection_hidden: Whole = 0

    @property
    def passes(self) -> int:
        """Number of times that each layer is applied.

        Raises:
          ReslabError: If it is 0.
        """
        if not self.groups:
            raise ReslabError(
                "stacks 'sliced': groups",
                expected="a number for each application",
                got="()",
            )
        return len(self.groups)

    @property
    def route(self) -> tuple[int, ...]:
        """Numbers of the layers applied, in order."""
        return tuple(n for n in range(self.depth) for _ in range(self.passes))

    def applications(self, name: str) -> int:
        """Number of times that a kernel is applied; what follows a layer is not."""
        return 1 if "/projection_" in name else self.passes

    def applied_entries(self, name: str, entries: int, rows: int) -> int:
        """Entries of a kernel, as often as it is applied to a token of each stream."""
        applied = super().applied_entries(name, entries, rows)
        streams = getattr(self.unbound_residual, "streams", 1)
        return applied * streams if "/projection_" in name else applied

    @property
    def stored_blocks(self) -> tuple[BlockFactory, ...]:
        """The blocks, each applied several times."""
        if getattr(self.unbound_residual, "is_history", False):
            raise ReslabError(
                f"stacks 'sliced': residual {self.residual!r}",
                expected="one that carries a stream, which is changed after each layer",
                got="a row for what each layer wrote",
                hint="residual plain or weighted",
            )
        rest = tuple(self.groups), self.projection_hidden, self.context
        return tuple(sliced(block, *rest) for block in self.blocks)

    def mixing_flops(self, length: int, features: int) -> int:
        """Matrix-product FLOPs per token beyond the kernels', over all applications."""
        return self.make_layers(parent=None).mixing_flops(length, features)


build = SlicedStack
