"""A layer of three sublayers: a short window of attention before the usual two."""

from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from reslab.core import registry
from reslab.core.bounds import bounded
from reslab.core.errors import ReslabError
from reslab.core.types import Branch, Shared, State, Stream
from reslab.nn.base.place import Place
from reslab.nn.blocks._sublayers import Sublayer, SublayerBlock


class Mixers(NamedTuple):
    """The branches of both mixers."""

    short: Branch
    main: Branch


@bounded
class ShortWindowBlock(SublayerBlock):
    """Attends to the last few tokens, then as usual, then applies the ffn.

        s = x + short(norm(x))
        a = s + mixer(norm(s))
        x = a + ffn(norm(a))

    written for a plain residual and pre-norm; both may be others. The short mixer is
    causal attention over the latest tokens (ShortSWA), in place of a short
    convolution; along depth the same attention is residual `depth_window`.

    Reference: Zhang, 2026, https://arxiv.org/abs/2603.16039, whose window is 128. A
    note without code or experiments; heads and positions of the short attention are
    not in it: here they are those of its spec and of the model. Tested against its
    equations.

    Attributes:
      short: Spec of the short mixer.
      (those of `SublayerBlock`)

    Raises:
      ReslabError: If the short mixer leaves entries in the depth memory.
    """

    short: registry.Spec = "attention(window=128)"

    @property
    def sublayers(self) -> int:
        """Three."""
        return 3

    @property
    def feed_forwards(self) -> int:
        """One."""
        return 1

    def _short(self, make: Callable[..., Any] = registry.make, **keywords) -> Any:
        context = vars(self.part_context("mixer"))
        return make("mixers", self.short, **context, **keywords)

    def _check_mixer(self) -> None:
        super()._check_mixer()
        if not getattr(self._short(registry.unbound), "takes_inputs", False):
            raise ReslabError(
                f"residual {self.residual!r} reads for queries, keys and values apart",
                expected="a short mixer that has these",
                got=repr(self.short),
                hint="attention(window=128)",
            )

    @property
    def unbound_short(self) -> Any:
        """The short mixer outside of any module, to read its traits."""
        short = self._short(registry.unbound)
        if getattr(short, "writes_shared", None):
            raise ReslabError(
                "blocks 'short_window': short",
                expected="a mixer that leaves nothing for later layers",
                got=repr(self.short),
                hint="attention(window=128)",
            )
        return short

    def init_state(
        self,
        batch: int,
        length: int,
        features: int,
        shared: Collection[str] = (),
    ) -> State:
        """The states of both mixers before the first token."""
        main = super().init_state(batch, length, features, shared)
        main, tails = self.without_tails(main)
        short = self.unbound_short.init_state(batch, length, features)
        return self.with_tails({"short": short, "main": main}, tails)

    def mixing_flops(self, length: int, features: int) -> int:
        """Matrix-product FLOPs per token of its parts, beyond their kernels'."""
        window = getattr(self.unbound_short, "window", 0) or length
        short = self.unbound_short.mixing_flops(min(window, length), features)
        return super().mixing_flops(length, features) + short

    def branches(self, mixer: Any) -> Iterable[Sublayer]:
        """The short mixer, the mixer, then the feed-forward layer."""
        yield Sublayer("short", "mixer", mixer.short)
        yield Sublayer("mixer", "mixer", mixer.main)
        yield Sublayer("ffn", "ffn", self.make_ffn(name="ffn"))

    @nn.compact
    def __call__(
        self,
        stream: Stream,
        shared: Shared,
        *,
        layer: int | jax.Array,
        positions: jax.Array,
        segments: jax.Array | None = None,
        state: State = None,
    ) -> tuple[Stream, Shared, State]:
        """Applies the layer; see `SublayerBlock`."""
        place = Place.of(layer, self.context, self.sublayers, segments, shared)
        state, tails = self.without_tails(state)
        states = {} if state is None else dict(state)
        around = {"positions": positions, "segments": segments}

        def branch(name: str, module: nn.Module) -> Branch:
            def mix(h):
                y, place.shared, after = module(
                    h, **around, shared=place.shared, state=states.get(name)
                )
                if name in states:
                    states[name] = after
                return y

            return mix

        mixers = Mixers(
            branch("short", self._short(name="short")),
            branch("main", self.make_mixer(name="mixer")),
        )
        stream, tails = self.run_told(stream, mixers, place, segments, tails)
        after = None if state is None else states
        return stream, place.shared, self.with_tails(after, tails)


build = ShortWindowBlock
