"""Base of blocks: a mixer, feed-forward layers, and sublayers around them."""

from collections.abc import Callable, Collection, Iterable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax

from reslab.core import registry, surroundings
from reslab.core.errors import ReslabError
from reslab.core.surroundings import Context
from reslab.core.types import Branch, Shared, State, Stream
from reslab.nn.base import sites
from reslab.nn.base.dropout import dropout
from reslab.nn.base.place import Place, telling
from reslab.nn.base.token_shifts import Tokens, follows_tokens, telling_tokens


class Sublayer(NamedTuple):
    """One sublayer of a block.

    Attributes:
      name: Names its parameters, `<name>_placement` and `<name>_residual`.
      kind: Name passed to its placement: "mixer", "ffn", or "joint" for both in one.
      branch: What it computes, without norms.
    """

    name: str
    kind: str
    branch: Branch


class SublayerBlock(nn.Module):
    """Base of blocks that apply sublayers to the stream, one after the other.

        stream = placement(residual, sublayer)    for each of its sublayers

    Each sublayer has a residual and a placement of its own. A block says in
    `branches` what its sublayers are, and in `sublayers` how many.

    Attributes:
      mixer: Spec of the token mixer.
      ffn: Spec of the feed-forward layer.
      norm: Spec of the norms that the placement puts around them.
      placement: Spec of the placement.
      residual: Spec of the residual.
      context: What the parts may ask of their surroundings.

    Raises:
      ReslabError: If the residual does not go with the placement or the mixer.
    """

    mixer: registry.Spec = "attention"
    ffn: registry.Spec = "swiglu"
    norm: registry.Spec = "rms"
    placement: registry.Spec = "pre"
    residual: registry.Spec = "plain"
    context: Context = Context()

    # The sublayer of each part, for its placement.
    kinds: ClassVar[dict[str, str]] = {"mixer": "mixer", "ffn": "ffn"}

    # The kind of its first sublayer.
    begins_with: ClassVar[str] = "mixer"

    def __post_init__(self):
        super().__post_init__()
        residual = registry.unbound("residuals", self.residual, **vars(self.context))
        if getattr(residual, "is_history", False):
            self._check_placement()
        if getattr(residual, "reads_apart", False):
            self._check_mixer()

    def _check_placement(self) -> None:
        """Raises if a placement would rewrite sources of a history."""
        placement = self.unbound_placement(self.begins_with)
        if getattr(placement, "normalizes_stream", False):
            raise ReslabError(
                f"residual {self.residual!r}: its sources are written once",
                expected="a placement that normalizes branches, not the stream",
                got=type(placement).__name__,
                hint="pre, peri or sandwich",
            )

    def _check_mixer(self) -> None:
        """Refuses a mixer that cannot take queries, keys and values apart."""
        takes = self.begins_with == "mixer" and getattr(
            self.unbound_mixer, "takes_inputs", False
        )
        if not takes:
            raise ReslabError(
                f"residual {self.residual!r} reads for queries, keys and values apart",
                expected="a layer that begins with a mixer that has these",
                got=f"{self.mixer!r} in {type(self).__name__}",
                hint="mixer attention in block standard",
            )

    @property
    def sublayers(self) -> int:
        """Number of sublayers."""
        return sites.USUAL

    @property
    def feed_forwards(self) -> int:
        """Number of feed-forward layers that read, one after another."""
        return max(self.sublayers - 1, 1)

    def branches(self, mixer: Branch) -> Iterable[Sublayer]:
        """The sublayers in order; `mixer` applies the mixer and keeps its state."""
        raise NotImplementedError

    def trained_branches(self, mixer: Branch) -> list[Sublayer]:
        """The sublayers, with dropout on their outputs during training."""
        rate = self.context.dropout

        def dropped(branch: Branch) -> Branch:
            return lambda h: dropout(self, branch(h), rate)

        parts = list(self.branches(mixer))
        if rate:
            parts = [part._replace(branch=dropped(part.branch)) for part in parts]
        return parts

    def make_placement(self, kind: str, **keywords) -> nn.Module:
        """The placement around a sublayer of a kind."""
        return registry.make(
            "placements", self.placement, **self._around(kind), **keywords
        )

    def unbound_placement(self, kind: str) -> nn.Module:
        """The same outside of any module, to read its traits."""
        return registry.unbound("placements", self.placement, **self._around(kind))

    def _around(self, kind: str) -> dict[str, Any]:
        around = surroundings.Placements(sublayer=kind, sublayers=self.sublayers)
        return vars(self.context) | {"norm": self.norm, **around}

    def part_context(self, part: str) -> Context:
        """Builds the context of the mixer or ffn, adapted by the placement.

        Raises:
          ReslabError: If the placement wants a norm inside one that has no place for
            it.
        """
        spec, family = getattr(self, part), f"{part}s"
        placement = self.unbound_placement(self.kinds[part])
        # A placement from outside the package may define no `adapt`.
        adapt = getattr(placement, "adapt", lambda context: context)
        context = adapt(self.context)
        # A feed-forward layer has no queries, a mixer no activation.
        own = {"mixer": "qkv_norm", "ffn": "activation_norm"}[part]
        for key in ("inner_norm", "qkv_norm", "activation_norm"):
            wants = getattr(context, key) and not getattr(self.context, key)
            is_asked = key in ("inner_norm", own)
            if wants and is_asked and not registry.accepts(family, spec, key):
                raise ReslabError(
                    f"{type(placement).__name__} puts a norm inside the {part}",
                    expected=f"one that takes {key}",
                    got=repr(spec),
                )
        return context

    def _part(
        self, part: str, make: Callable[..., nn.Module] = registry.make, **keywords
    ) -> nn.Module:
        context = vars(self.part_context(part))
        return make(f"{part}s", getattr(self, part), **context, **keywords)

    def make_mixer(self, **keywords) -> nn.Module:
        """The mixer, as its placement wants it."""
        return self._part("mixer", **keywords)

    @property
    def unbound_mixer(self) -> Any:
        """The mixer outside of any module, to read its traits."""
        return self._part("mixer", registry.unbound)

    def make_ffn(self, **keywords) -> nn.Module:
        """A feed-forward layer, as its placement wants it."""
        return self._part("ffn", **keywords)

    @property
    def writes_shared(self) -> Collection[str]:
        """Names the entries that its parts write to the depth memory."""
        return self._entries("writes_shared")

    @property
    def renews_shared(self) -> Collection[str]:
        """Names the entries that its parts overwrite in the depth memory."""
        return self._entries("renews_shared")

    def _entries(self, trait: str) -> Collection[str]:
        ffn = self._part("ffn", registry.unbound)
        parts = self.unbound_mixer, ffn
        return [name for part in parts for name in getattr(part, trait, None) or ()]

    def in_groups(self, group: int, exchange: Any) -> Callable[..., Any]:
        """Returns the factory of this layer within groups of tokens.

        Args:
          group: Tokens of a group.
          exchange: A module that follows as one more sublayer, or None.

        Raises:
          ReslabError: If the layer is more than its sublayers.
        """
        from reslab.nn.blocks._grouped import in_groups

        if self._follows_tokens:
            raise ReslabError(
                f"residual {self.residual!r} reads earlier tokens",
                expected="a stack that keeps tokens in order",
                got="groups of tokens",
            )
        return in_groups(self, group, exchange)

    def init_state(
        self,
        batch: int,
        length: int,
        features: int,
        shared: Collection[str] = (),
    ) -> State:
        """The mixer's state before the first token."""
        # A mixer from outside the package may not read the depth memory.
        found = {"shared": shared} if shared else {}
        state = self.unbound_mixer.init_state(batch, length, features, **found)
        return self.with_tails(state, self._empty_tails(batch, features))

    def _empty_tails(self, batch: int, features: int) -> dict[str, Any] | None:
        """Tokens kept by residuals that follow them, none of them yet."""
        if not self._follows_tokens:
            return None
        tails = {}
        for index in range(self.sublayers):
            around = vars(self.context) | {"sublayer_index": index}
            residual = registry.unbound("residuals", self.residual, **around)
            dtype = self.context.dtype
            tails |= residual.empty_tails(batch, features, dtype, is_end=False)
        return tails

    def mixing_flops(self, length: int, features: int) -> int:
        """Matrix-product FLOPs per token of its parts, beyond their kernels'."""
        flops = self.unbound_mixer.mixing_flops(length, features)
        ffn = self._unbound_ffn
        if hasattr(ffn, "mixing_flops"):
            flops += self.feed_forwards * ffn.mixing_flops(length, features)
        return flops

    def asked_parameters(self, features: int, times: int = 1) -> int:
        """The most parameters of experts that a token asks, over several passes."""
        ffn = self._unbound_ffn
        if not hasattr(ffn, "asked_parameters"):
            return 0
        return self.feed_forwards * ffn.asked_parameters(features, times)

    @property
    def _unbound_ffn(self) -> Any:
        """One of its feed-forward layers outside of any module."""
        count = max(self.feed_forwards, 1)
        share = surroundings.FeedForwards(hidden_scale=1 / count)
        return self._part("ffn", registry.unbound, **share)

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
        """Applies the layer.

        Args:
          stream: The residual stream.
          shared: Depth memory.
          layer: Index of the layer among those applied, from 0; may be traced.
          positions: Position of each token in its document (batch, length).
          segments: Document of each token, or None.
          state: The mixer's state to continue from, or None.

        Returns:
          The new stream, depth memory, and state.
        """
        module = self.make_mixer(name="mixer")
        place = Place.of(layer, self.context, self.sublayers, segments, shared)

        def mixer(h):
            nonlocal state
            y, place.shared, state = module(
                h,
                positions=positions,
                segments=segments,
                shared=place.shared,
                state=state,
            )
            return y

        state, tails = self.without_tails(state)
        stream, tails = self.run_told(stream, mixer, place, segments, tails)
        return stream, place.shared, self.with_tails(state, tails)

    def run_told(
        self,
        stream: Stream,
        mixer: Any,
        place: Place,
        segments: jax.Array | None,
        tails: Any,
    ) -> tuple[Stream, Any]:
        """Runs the sublayers, with residuals that may look along the sequence.

        Args:
          stream: The residual stream.
          mixer: The mixer's branch.
          place: The place of the first sublayer.
          segments: Document of each token, or None.
          tails: From `without_tails`.

        Returns:
          The new stream, and the new tails.
        """
        with telling_tokens(Tokens(segments, tails)) as tokens:
            stream = self.run(stream, mixer, place)
        return stream, None if tails is None else tokens.left

    def without_tails(self, state: State) -> tuple[State, Any]:
        """Takes the states of mixers and of residuals that follow tokens apart."""
        if state is None or not self._follows_tokens:
            return state, None
        return state["mixer"], state["tails"]

    def with_tails(self, state: State, tails: Any) -> State:
        """Undoes `without_tails`."""
        return state if tails is None else {"mixer": state, "tails": tails}

    @property
    def _follows_tokens(self) -> bool:
        context = vars(self.context)
        return follows_tokens(registry.unbound("residuals", self.residual, **context))

    def run(
        self, stream: Stream, mixer: Branch, place: Place, count: int | None = None
    ) -> Stream:
        """Applies the sublayers to the stream, with their placements and residuals.

        Args:
          stream: The residual stream.
          mixer: The mixer's branch.
          place: The place of the first sublayer.
          count: Number of sublayers, from the first; None is all.
        """
        around = vars(self.context) | {"norm": self.norm}
        parts = self.trained_branches(mixer)
        residuals = [
            registry.make(
                "residuals",
                self.residual,
                **around,
                **surroundings.Residuals(
                    sublayer=part.kind,
                    sublayers=self.sublayers,
                    sublayer_index=index,
                ),
                name=f"{part.name}_residual",
            )
            for index, part in enumerate(parts)
        ]
        if hasattr(residuals[0], "read_ahead"):
            stream = residuals[0].read_ahead(stream, residuals[1:], site=place.site)
        with telling(place):
            steps = list(zip(parts, residuals, strict=True))
            for (name, kind, branch), residual in steps[:count]:
                placement = self.make_placement(kind, name=f"{name}_placement")
                stream = placement(stream, residual, branch, site=place.site)
                place.next()
        return stream
