"""Mixture of depths: layers that compute some of the tokens (Raposo et al., 2024)."""

from typing import Annotated, Literal

from reslab.core.bounds import Bounds, NonNegative, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.nn.base.token_shifts import follows_tokens
from reslab.nn.stacks._capacity import Routing, check_tokens_alone, with_capacity
from reslab.nn.stacks._layers import check_numbers
from reslab.nn.stacks._loops.span import BlockFactory
from reslab.nn.stacks.uniform import UniformStack

_SHARE = Bounds(above=0, most=1)


@bounded
class MixtureOfDepthsStack(UniformStack):
    """Applies some layers to the tokens that their routers choose.

        r_i = w . x_i
        y_i = x_i + g(r_i) (layer(x)_i - x_i)    for chosen tokens
        y_i = x_i                                for others

    In training a layer computes `ceil(capacity * length)` tokens of each row, those
    with the largest r, which see each other alone. That choice looks ahead; when
    evaluated and while generating, a layer computes the tokens for which a predictor is
    above 0, so that a cache gives what a full pass does. The predictor is the router
    itself, or a layer of `predictor_hidden` units that has no gradient to the stream;
    either learns the choice of training by binary cross-entropy.

    FLOPs are told for training; a full pass that is evaluated computes all tokens and
    keeps those that are chosen. With a capacity of 1 there is no choice and no
    predictor: layers are weighed by g(r) and are otherwise those of `uniform`.

    Reference: Raposo et al., 2024, https://arxiv.org/abs/2404.02258, Sections 3.3 to
    3.5 (g is linear there, capacity 12.5%, every other layer).

    Attributes:
      capacity: Share of the tokens that a layer computes.
      layers: Numbers of the layers that choose, from 0; () is every other one, from 1.
      gate: g, "linear" or "sigmoid".
      predictor_hidden: Width of the predictor; 0 is the router itself.
      cost: Weight of the predictor's loss.
      (and those of `UniformStack`)

    Raises:
      ReslabError: If there is no such layer, a layer cannot leave out tokens, or the
        residual keeps a history.
    """

    capacity: Annotated[float, _SHARE] = 0.125
    layers: Annotated[tuple[int, ...], Bounds(least=0)] = ()
    gate: Literal["linear", "sigmoid"] = "linear"
    predictor_hidden: Whole = 0
    cost: NonNegative = 0.01

    @property
    def routing(self) -> Routing:
        """The rule by which layers choose tokens."""
        return Routing(self.capacity, self.gate, self.predictor_hidden, self.cost)

    @property
    def choosing(self) -> tuple[int, ...]:
        """Numbers of the layers that choose.

        Raises:
          ReslabError: If there is no such layer.
        """
        check_numbers("stacks 'mod': layers", self.layers, self.depth)
        return self.layers or tuple(range(1, self.depth, 2))

    @property
    def stored_blocks(self) -> tuple[BlockFactory, ...]:
        """The blocks; some choose tokens."""
        blocks = [self.blocks[layer % len(self.blocks)] for layer in range(self.depth)]
        if getattr(self.unbound_residual, "is_history", False):
            raise ReslabError(
                f"stacks 'mod': residual {self.residual!r}",
                expected="one by which tokens can pass",
                got="a row for what each layer wrote of every token",
                hint="residual plain",
            )
        if follows_tokens(self.unbound_residual):
            raise ReslabError(
                f"stacks 'mod': residual {self.residual!r}",
                expected="one that reads no earlier token",
                got="a convolution over tokens, where layers compute a few of them",
                hint="residual plain",
            )
        for layer in self.choosing:
            check_tokens_alone(blocks[layer], f"stacks 'mod': layer {layer}")
            blocks[layer] = with_capacity(blocks[layer], self.routing)
        return tuple(blocks)

    def applied_entries(self, name: str, entries: int, rows: int) -> int:
        """Entries of a kernel, for the share of tokens that it is applied to."""
        del rows
        _, is_layer, inner = name.partition("/segment_")
        if not is_layer or "/predictor_" in name:
            return entries
        span, block, _ = inner.split("/", 2)
        blocks, _ = self.make_layers(parent=None).plan()[int(span)]
        chosen = {self.stored_blocks[layer] for layer in self.choosing}
        is_chosen = blocks[int(block.removeprefix("block_"))] in chosen
        return round(entries * self.capacity) if is_chosen else entries


build = MixtureOfDepthsStack
