"""A feed-forward layer of experts; every token is sent to a few of them."""

import functools
import math
from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.bounds import (
    Bounds,
    Count,
    Fraction,
    NonNegative,
    Positive,
    Whole,
    bounded,
)
from reslab.core.errors import ReslabError
from reslab.core.losses import add_loss
from reslab.core.model_state import BATCH_STATS
from reslab.core.precision import statistics_dtype
from reslab.core.randomness import training_key
from reslab.core.taps import tap
from reslab.nn.base.norm import make_norm
from reslab.nn.base.projection import ProjectingModule
from reslab.nn.ffns import _routing
from reslab.nn.ffns._kernels import ExpertKernels, Kernels, Router
from reslab.nn.ffns._routing import Choice
from reslab.ops import dispatch
from reslab.ops.dispatch import Sent

SCORES = {
    "softmax": jax.nn.softmax,
    "sigmoid": nn.sigmoid,
    "sqrt_softplus": lambda logits: jnp.sqrt(jax.nn.softplus(logits)),
}


@bounded
class Experts(ProjectingModule):
    """Asks the experts with the highest scores, and adds up what they say.

        p    = softmax(l), sigmoid(l) or sqrt(softplus(l)),  l = x . W_r    (float32)
        E    = the `chosen` experts with the largest p + bias
        w_e  = scale p_e / sum_(e in E) p_e
        y    = sum_(e in E) w_e (silu(x . G_e) * (x . U_e)) . D_e + shared(x)

    Without a capacity no choice is dropped: tokens are sorted by expert, and one
    grouped product multiplies each by its expert's matrix. With one, an expert takes
    `ceil(capacity * chosen * length / experts)` choices of a row, those of earlier
    tokens first; others add nothing. The output then depends on the length of the row,
    padding included, and so a token that is generated alone is never dropped.

    With `chosen=1` a renormalized weight is 1, and the router learns from the balance
    alone: Switch layers have `is_renormalized=False`.

    Experts are balanced by a loss (`balance="loss"`: `rate` times `_routing.balance`;
    "sequence": its mean over rows with shares of their own), or by a bias on the choice
    that follows the load ("bias": `bias += rate sign(1/experts - load)` each training
    step, kept in `batch_stats`), or not at all.

    References: Shazeer et al., 2017, arXiv 1701.06538; Fedus et al., 2021, arXiv
    2101.03961 (balance loss, capacity); Zoph et al., 2022, arXiv 2202.08906 (z-loss);
    Gale et al., 2022, arXiv 2211.15841 (dropless); DeepSeek-AI, 2024, arXiv 2412.19437,
    Eq. 12 to 16 (sigmoid scores, choice bias, groups, scale); Wang et al., 2024, arXiv
    2408.15664 (its update).

    Tested against the blocks of DeepSeek-V3 and Qwen3-Next in `transformers`.

    Attributes:
      experts: Number of experts.
      chosen: Experts of a token.
      hidden: Hidden width of an expert; 0 is 8/3 of the features over `chosen`,
        rounded up to a multiple of 32.
      form: Spec of the gated layer that every expert is, the shared one included.
      scores: Function of the router.
      is_renormalized: Whether the weights of a token sum to `scale`.
      scale: Factor on the weights.
      groups: Groups of neighbouring experts.
      chosen_groups: Groups that a token may choose from.
      shared_hidden: Hidden width of an expert for all tokens; 0 leaves it out.
      is_shared_gated: Whether it has a gate, sigmoid(x . w).
      latent: Width in which experts act, behind a projection and before a norm and
        another; 0 is the features themselves.
      capacity: Factor on the equal share of a row's choices; 0 drops none.
      balance: What balances the experts.
      rate: Factor of the balance loss, or step of the bias.
      z_loss: Factor of the mean squared log-normalizer of the router.
      jitter: The router's input is multiplied by uniform(1 - jitter, 1 + jitter)
        while training.
      hidden_scale: Factor on the default hidden width.
      (and those of `ProjectingModule`)

    Raises:
      ReslabError: If more experts are chosen than there are, or groups do not divide
        them, or projections are not dense.
    """

    experts: Annotated[int, Bounds(least=1, most=2**16)] = 8
    chosen: Count = 2
    hidden: Whole = 0
    form: registry.Spec = "swiglu"
    scores: Literal["softmax", "sigmoid", "sqrt_softplus"] = "softmax"
    is_renormalized: bool = True
    scale: Positive = 1.0
    groups: Count = 1
    chosen_groups: Count = 1
    shared_hidden: Whole = 0
    is_shared_gated: bool = False
    latent: Whole = 0
    capacity: NonNegative = 0.0
    balance: Literal["loss", "sequence", "bias", "none"] = "loss"
    rate: NonNegative = 0.01
    z_loss: NonNegative = 0.0
    jitter: Fraction = 0.0
    hidden_scale: float = 1.0

    degree: ClassVar[int] = 2

    def _check(self) -> None:
        ranges = (
            (self.chosen <= self.experts, "chosen", f"at most {self.experts}"),
            (
                self.experts % self.groups == 0,
                "groups",
                f"a divisor of the {self.experts} experts",
            ),
            (
                self.chosen_groups <= self.groups,
                "chosen_groups",
                f"at most {self.groups}, the groups",
            ),
            (
                self.chosen * self.groups <= self.experts * self.chosen_groups,
                "chosen_groups",
                f"groups that hold the {self.chosen} chosen experts",
            ),
            (
                self.linear == "dense",
                "linear",
                "'dense': the matrices of experts are grouped",
            ),
            (
                hasattr(registry.unbound("ffns", self.form), "gated"),
                "form",
                "a layer that gates one half by the other, such as 'swiglu'",
            ),
        )
        for is_right, name, expected in ranges:
            if not is_right:
                raise ReslabError(
                    f"ffns 'experts': {name}",
                    expected=expected,
                    got=repr(getattr(self, name)),
                )

    def _hidden(self, features: int) -> int:
        wanted = features * 8 / 3 * self.hidden_scale / self.chosen
        return self.hidden or 32 * math.ceil(wanted / 32)

    def asked_parameters(self, features: int, times: int = 1) -> int:
        """The most parameters of experts that a token asks, over several passes."""
        asked = min(times * self.chosen, self.experts)
        return asked * self.expert_parameters(features)

    def expert_parameters(self, features: int) -> int:
        """Parameters of one expert."""
        return 3 * (self.latent or features) * self._hidden(features)

    def mixing_flops(self, length: int, features: int) -> int:
        """FLOPs of the experts that a token asks."""
        del length
        return 2 * self.chosen * self.expert_parameters(features)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        logits: jax.Array | None = None,
    ) -> jax.Array:
        """Maps (batch, length, embed) to the same shape.

        Args:
          x: The input.
          mask: Which tokens are in a document (batch, length); None is all. Others
            neither count for the balance nor take capacity.
          logits: What a router says (batch, length, experts), in place of its own.
        """
        self._check()
        logits = self.route(x) if logits is None else logits
        return self.ask(x, logits, mask, self.kernels(x))

    def route(self, x: jax.Array, name: str = "router") -> jax.Array:
        """The router's logits (batch, length, experts), in float32 at least."""
        router = Router(self.experts, self.init_std, self.param_dtype, name=name)
        return router(self.router_input(x))

    def router_input(self, x: jax.Array) -> jax.Array:
        """The input in float32 at least, with jitter while training."""
        wide = x.astype(statistics_dtype(self.dtype))
        key = training_key(self) if self.jitter else None
        if key is not None:
            low, high = 1 - self.jitter, 1 + self.jitter
            wide = wide * jax.random.uniform(key, wide.shape, wide.dtype, low, high)
        return wide

    def kernels(self, x: jax.Array) -> Kernels:
        """The matrices of all experts."""
        width, hidden = self.latent or x.shape[-1], self._hidden(x.shape[-1])
        make = functools.partial(
            ExpertKernels, self.experts, std=self.init_std, param_dtype=self.param_dtype
        )
        up, down = ("embed", "mlp"), ("mlp", "embed")
        return Kernels(
            make(width, hidden, up, scale=self.inner_scale, name="gate")(),
            make(width, hidden, up, scale=self.inner_scale, name="up")(),
            make(
                *(hidden, width, down),
                scale=1.0 if self.latent else self.output_scale,
                name="down",
            )(),
        )

    def ask(
        self,
        x: jax.Array,
        logits: jax.Array,
        mask: jax.Array | None,
        kernels: Kernels,
    ) -> jax.Array:
        """The weighted answers of the experts that the router chooses, and the shared.

        Args:
          x: Features (batch, length, embed).
          logits: What the router says (batch, length, experts).
          mask: Which tokens are in a document (batch, length); None is all.
          kernels: Matrices of the experts.
        """
        wide = statistics_dtype(self.dtype)
        whole = jnp.ones(x.shape[:2], wide)
        counted = whole if mask is None else mask.astype(wide)
        y = self._ask_chosen(x, logits, counted, kernels)
        return y + self._ask_shared(x) if self.shared_hidden else y

    def _ask_chosen(
        self, x: jax.Array, logits: jax.Array, counted: jax.Array, kernels: Kernels
    ) -> jax.Array:
        scores = self.candidates(SCORES[self.scores](logits))
        choice = self._choose(scores, counted)
        if self.z_loss:
            square = jnp.square(jax.nn.logsumexp(logits, axis=-1))
            mean = jnp.sum(square * counted) / jnp.maximum(jnp.sum(counted), 1.0)
            add_loss(self, "router_z_loss", self.z_loss * mean)
        features, x = x.shape[-1], x.astype(self.dtype)
        if self.latent:
            x = self.project("latent_down", x, self.latent, ("embed", None))
        choice = choice._replace(weights=choice.weights.astype(self.dtype))
        kernels = jax.tree.map(lambda kernel: kernel.astype(self.dtype), kernels)
        sent = self._send(x, choice.experts, counted)
        gate, up = (dispatch.product(sent.tokens, k, sent) for k in kernels[:2])
        form = registry.unbound("ffns", self.form)
        h = self.normalize_inner(form.gated(gate, up), "mlp")
        answers = dispatch.product(h, kernels.down, sent)
        y = dispatch.take_back(answers, choice.weights, sent)
        if self.latent:
            y = make_norm("rms", param_dtype=self.param_dtype, name="latent_norm")(y)
            axes = (None, "embed")
            y = self.project("latent_up", y, features, axes, scale=self.output_scale)
        return y

    def candidates(self, scores: jax.Array) -> jax.Array:
        """The scores of experts that may be chosen; those of others are 0."""
        return scores

    def _choose(self, scores: jax.Array, counted: jax.Array) -> Choice:
        count, bias = scores.shape[-1], None
        if self.balance == "bias":
            dtype = jax.dtypes.canonicalize_dtype(jnp.float64)
            bias = self.variable(BATCH_STATS, "bias", lambda: jnp.zeros(count, dtype))
        choice = _routing.choose(
            scores,
            self.chosen,
            bias=None if bias is None else bias.value,
            groups=self.groups,
            chosen_groups=self.chosen_groups,
            is_renormalized=self.is_renormalized,
            scale=self.scale,
        )
        share = _routing.load(choice.experts, count, counted)
        tap(self, "expert_load", share)
        tap(self, "router_entropy", _routing.entropy(scores, counted))
        if self.balance in ("loss", "sequence") and self.rate:
            if self.balance == "loss":
                loss = _routing.balance(scores, share, counted)
            else:
                loss = _routing.balance_of_rows(scores, choice.experts, counted)
            add_loss(self, "balance", self.rate * loss)
        is_training = self.is_mutable_collection(BATCH_STATS)
        if bias is not None and is_training and not self.is_initializing():
            step = self.rate * jnp.sign(1 / count - share)
            bias.value = bias.value + step.astype(bias.value.dtype)
        return choice

    def _send(self, x: jax.Array, experts: jax.Array, counted: jax.Array) -> Sent:
        """Sends tokens to their experts, or those for which there is room."""
        if not self.capacity:
            return dispatch.send(x, experts, self.experts)
        share = self.capacity * self.chosen * x.shape[1] / self.experts
        most = min(x.shape[1], math.ceil(share))
        place = _routing.places(experts, self.experts, counted)
        is_taken = (place < most) & (counted > 0)[..., None]
        lost = 1.0 - jnp.sum(is_taken.astype(counted.dtype)) / jnp.maximum(
            jnp.sum(counted) * self.chosen, 1.0
        )
        tap(self, "dropped_choices", lost)
        place = jnp.where(is_taken, place, most)
        return dispatch.send_to_slots(x, experts, place, self.experts, most)

    def _ask_shared(self, x: jax.Array) -> jax.Array:
        """The answer of the expert that all tokens ask."""
        y = registry.make(
            "ffns",
            self.form,
            hidden=self.shared_hidden,
            linear=self.linear,
            init_std=self.init_std,
            output_scale=self.output_scale,
            inner_scale=self.inner_scale,
            inner_norm=self.inner_norm,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="shared",
        )(x)
        if self.is_shared_gated:
            gate = self.project("shared_gate", x, 1, ("embed", None))
            y = nn.sigmoid(gate) * y
        return y


build = Experts
