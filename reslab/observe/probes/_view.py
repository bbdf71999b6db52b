"""A model's state on some tokens, along depth, as probes see it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from reslab.core.taps import recording
from reslab.observe.watch import (
    CannotAnswer,
    by_site,
    tapped,
    watching_sublayers,
    without_layers,
)


class Quantity(NamedTuple):
    """One result of a probe, for people.

    Attributes:
      title: What it is.
      axis: What its values are ordered by: "site" (every sublayer by what it
        reads, then the end of the stream), "sublayer" (without the end), "layer",
        "layer x layer" (the last row and column are the end) or "sublayer x source".
      is_logarithmic: Whether its scale is.
    """

    title: str
    axis: str
    is_logarithmic: bool = False


class Probe(Protocol):
    """Measures a view and returns arrays; one file of `observe/probes/` each.

    `build(**options)` makes one. It runs inside jit.
    """

    quantities: ClassVar[Mapping[str, Quantity]]

    def __call__(self, view: "View") -> dict[str, jax.Array]:
        """Computes the value of every quantity that it names.

        Raises:
          CannotAnswer: If the model's variants have nothing to show.
        """
        ...


class Trace(NamedTuple):
    """Records of the sublayers, in order of depth.

    Attributes:
      readings: What each reads from the stream, before its norm (sublayers,
        batch, length, embed). For `plain` this is the stream; for a residual of
        several streams, the mixture that the sublayer sees.
      outputs: What each returns to the residual, after its norms; same shape.
      end: The features after the last layer, before the final norm (batch, length,
        embed), as large as a reading: divided by `gain`.
      gain: How many times as large they are in the model.
      sites: The sites of the sublayers (sublayers,).
      layers: Number of layers applied.
      is_even: Whether all layers have the same number of sublayers.
      others: What parts tapped themselves, by name: a list of values with one
        entry for each sublayer that did, in order.
    """

    readings: jax.Array
    outputs: jax.Array
    end: jax.Array
    gain: jax.Array
    sites: jax.Array
    layers: int
    is_even: bool
    others: Mapping[str, jax.Array]

    @property
    def stream(self) -> jax.Array:
        """The readings and the end (sublayers + 1, batch, length, embed)."""
        return jnp.concatenate([self.readings, self.end[None]])

    @property
    def layer_stream(self) -> jax.Array:
        """Input of each layer, and the end (layers + 1, batch, length, embed).

        Raises:
          CannotAnswer: If layers differ in their number of sublayers.
        """
        each = self.readings.shape[0] // self.layers
        if not self.is_even:
            raise CannotAnswer(
                "figures by layer",
                expected="layers of equally many sublayers",
                got=f"{self.readings.shape[0]} sublayers in {self.layers} layers",
            )
        return jnp.concatenate([self.readings[::each], self.end[None]])


@dataclasses.dataclass(frozen=True)
class View:
    """One state of a model on some tokens; everything is computed on demand.

    Attributes:
      params: The parameters.
      layouts: The meaning of their axes, a tree of `Layout`.
      opt_state: The optimizer's state.
      is_counted: Which tokens count (batch, length); padding does not.
      is_first: Which tokens are the first of their document (batch, length).
      forward: Runs the model once and returns its `taps` collection.
      read_out: Maps the end of the stream to logits: final norm and head.
      loss: Mean loss of the tokens that count.
      gradient: Maps slots and sites (see `watching_stream_gradient`) to the gradient
        of the training loss by the parameters, and by the slots.
      update: Maps that gradient to the change of the parameters.
      forward_alone: Runs the model once as if every token were a document of its own;
        None where the model has no tokens.
    """

    params: Any
    layouts: Any
    opt_state: Any
    is_counted: jax.Array
    is_first: jax.Array
    forward: Callable[[], Any]
    read_out: Callable[[jax.Array], jax.Array]
    loss: Callable[[], jax.Array]
    gradient: Callable[[jax.Array, jax.Array], tuple[Any, jax.Array]]
    update: Callable[[Any], Any]
    forward_alone: Callable[[], Any] | None = None

    @functools.cached_property
    def trace(self) -> Trace:
        """One forward pass, watched.

        Raises:
          CannotAnswer: If the model has no sublayers that keep to the protocols.
        """
        return self._traced(self.forward)

    @functools.cached_property
    def trace_alone(self) -> Trace:
        """The same with every token as a document of its own.

        Raises:
          CannotAnswer: If the model has no tokens, or no such sublayers.
        """
        if self.forward_alone is None:
            raise CannotAnswer(
                "tokens without context", expected="a model of tokens", got="none"
            )
        return self._traced(self.forward_alone)

    def _traced(self, forward: Callable[[], Any]) -> Trace:
        """One forward pass, watched."""
        with watching_sublayers() as counts:
            taps = forward()
        found = tapped(taps)
        if not {"reading", "end", "layer"} <= found.keys():
            raise CannotAnswer(
                "the model", expected="sublayers along depth", got="none seen"
            )
        sites = [site.reshape(-1) for site, _ in found["reading"]]
        stacked = {name: by_site(name, pairs) for name, pairs in found.items()}
        end = stacked.pop("end")[-1]
        gain = stacked.pop("gain", jnp.ones(1))[-1]
        return Trace(
            readings=stacked.pop("reading"),
            outputs=stacked.pop("output"),
            end=end / gain.astype(end.dtype),
            gain=gain,
            sites=jnp.sort(jnp.concatenate(sites)),
            layers=stacked.pop("layer").shape[0],
            is_even=len(counts) == 1,
            others=stacked,
        )

    def recorded(self, name: str) -> jax.Array | None:
        """Records an activation of all sublayers that have it; None if none has."""
        with watching_sublayers(), recording((name,)):
            found = tapped(self.forward())
        return by_site(name, found[name]) if name in found else None

    @functools.cached_property
    def training_gradient(self) -> tuple[Any, jax.Array]:
        """Gradients of the training loss: by parameters, and squared by each stream."""
        sites = self.trace.sites
        return self.gradient(jnp.zeros(sites.shape, jnp.float32), sites)

    def lens(self, x: jax.Array) -> jax.Array:
        """The logits of a reading, or of the end, as if the model ended there."""
        return self.read_out(x * self.trace.gain.astype(x.dtype))

    @functools.cached_property
    def logits(self) -> jax.Array:
        """The model's logits (batch, length, vocabulary)."""
        return self.lens(self.trace.end)

    def loss_without(self, is_removed: jax.Array) -> jax.Array:
        """The mean loss when the layers in `is_removed` (layers,) are left out."""
        with without_layers(is_removed):
            return self.loss()

    def mean(self, values: jax.Array, which: slice = slice(None)) -> jax.Array:
        """Averages (..., batch, length) over the tokens that count, in float32.

        Args:
          values: The values, of the tokens in `which`.
          which: The tokens of each sequence that they are of; all by default.
        """
        return self._mean(values, self.is_counted[:, which])

    def mean_after_first(self, values: jax.Array) -> jax.Array:
        """The same without the first token of each document."""
        return self._mean(values, self.is_counted & ~self.is_first)

    def _mean(self, values: jax.Array, is_counted: jax.Array) -> jax.Array:
        weights = is_counted.astype(jnp.float32)
        # Zero times infinity is NaN, so excluded values are replaced before the sum.
        counted = jnp.where(is_counted, values.astype(jnp.float32), 0.0)
        total = jnp.maximum(jnp.sum(weights), 1.0)
        return jnp.sum(counted, axis=(-2, -1)) / total


def norms(x: jax.Array) -> jax.Array:
    """Euclidean norms over the last axis, in float32."""
    return jnp.linalg.norm(x.astype(jnp.float32), axis=-1)


def cosines(x: jax.Array, y: jax.Array) -> jax.Array:
    """Cosines over the last axis, in float32; 0 where a vector vanishes."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    product = norms(x) * norms(y)
    return jnp.where(
        product > 0, jnp.sum(x * y, axis=-1) / jnp.where(product > 0, product, 1), 0.0
    )
