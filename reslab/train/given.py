"""Batches, loss and step that a caller gives a run, in place of its config's."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reslab.core.errors import ReslabError
from reslab.core.model_state import BATCH_STATS, ModelState
from reslab.data.batches import validation_batches
from reslab.train.state import Setup
from reslab.train.step import HEALTH, Step, jit_step
from reslab.train.tasks import Batch, Headline, Sums, Task, make_task

Loss = Callable[[Any, ModelState, Batch, jax.Array | None], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """Parts of a run that its caller gives; None leaves a part to the config.

    Attributes:
      batches: A function of the number of the batch, or an iterable of batches.
      held_out: Batches to evaluate on.
      loss: Maps model, variables, batch and random key to the loss of every token.
      step: Maps the setup to a training step `(state, batch) -> (state, metrics)`.
    """

    batches: Callable[[int], Any] | Iterable[Any] | None = None
    held_out: Iterable[Any] | None = None
    loss: Loss | None = None
    step: Callable[[Setup], Step] | None = None

    def __post_init__(self) -> None:
        for name in ("loss", "step"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise ReslabError(name, expected="a function", got=repr(value))
        if not (callable(self.batches) or isinstance(self.batches, Iterable | None)):
            raise ReslabError(
                "batches",
                expected="a function of the number of a batch, or an iterable",
                got=repr(self.batches),
            )

    def __bool__(self) -> bool:
        parts = (getattr(self, field.name) for field in dataclasses.fields(self))
        return any(part is not None for part in parts)

    def task(self, config: ConfigDict) -> Task:
        """Returns the task of a config, with what is given in place of its own.

        Raises:
          ReslabError: If a loss is given for another model than one of language.
        """
        task = make_task(config)
        if not self:
            return task
        if self.loss and task.unit != "tokens":
            raise ReslabError(
                "loss", expected="a language model", got=f"a model of {task.unit}"
            )
        return _GivenTask(task, config, self)  # pyrefly: ignore[bad-return]

    def record(self, config: ConfigDict) -> dict[str, Any]:
        """Returns the entry `given` of the run's record; none if nothing is given."""
        if not self:
            return {}
        task: Any = self.task(config)
        return {"given": task.given()}

    def judged(self, setup: Setup) -> Any:
        """Returns the given step with what a run is judged by, or None."""
        return self.step and _judged(self.step(setup))

    def compiled(self, setup: Setup) -> Any:
        """Returns the given step as a run compiles it, or None."""
        step = self.judged(setup)
        return step and jit_step(setup, step)


NOTHING = Given()


def _judged(step: Step) -> Step:
    """The step with the metrics that every step is judged by, and its number."""

    def judged(state, batch):
        new, metrics = step(state, batch)
        if "loss" not in metrics:
            raise ReslabError(
                "step: metrics", expected="a 'loss'", got=", ".join(metrics) or "none"
            )
        if HEALTH not in metrics:
            loss = jnp.asarray(metrics["loss"], jnp.float32)
            norm = jnp.asarray(metrics.get("gradient_norm", jnp.abs(loss) + 1))
            none = jnp.zeros(()), -jnp.ones(())
            health = jnp.stack([loss, norm.astype(jnp.float32), *none])
            metrics = {**metrics, HEALTH: health}
        return new._replace(step=state.step + 1), metrics

    return judged


class _GivenTask:
    """A config's task with some parts replaced by the caller's."""

    def __init__(self, task: Task, config: ConfigDict, given: Given):
        self._task, self._config, self._given = task, config, given
        rows = config.data.batch // jax.process_count()
        self._shapes = task.batch_shapes(rows)
        self._batches = None
        if given.batches is not None:
            self._batches = _Batches(given.batches, config, self._whole)
        self._held_out = None
        if given.held_out is not None:
            self._held_out = _Rows(given.held_out, self._whole)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    @property
    def headline(self) -> Headline:
        """The task's, or the loss where held-out batches do not count bytes."""
        if self._held_out and "sizes" in self._shapes.keys() - self._held_out.arrays:
            return Headline("loss", "nats per token")
        return self._task.headline

    def record(self) -> dict[str, Any]:
        """Returns the task's record, and what was given."""
        return {**self._task.record(), "given": self.given()}

    def given(self) -> dict[str, str]:
        """Returns the name of each function, and the digest of batches."""
        found = {
            name: f"{value.__module__}.{value.__qualname__}"
            if hasattr(value, "__qualname__")
            else type(value).__qualname__
            for name in ("loss", "step")
            if (value := getattr(self._given, name)) is not None
        }
        if self._batches:
            found["batches"] = _sha256(self._batches.first())
        if self._held_out:
            found["held_out"] = _sha256(self._held_out.arrays)
        return found

    def train_batches(self) -> Any:
        """Returns the given batches, or the task's."""
        return self._batches or self._task.train_batches()

    def validation_batches(
        self, rows: int, most: int | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields every given row once, or some, or the task's."""
        if self._held_out is None:
            return self._task.validation_batches(rows, most)
        process = jax.process_index(), jax.process_count()
        return validation_batches(self._held_out, rows, *process, most=most)

    def loss_sums(
        self,
        model: Any,
        variables: ModelState,
        batch: Batch,
        *,
        is_training: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Sums, ModelState]:
        """Adds up the given loss while training, the task's otherwise."""
        options: dict[str, Any] = {"is_training": is_training, "key": key}
        if self._given.loss is None or not is_training:
            return self._task.loss_sums(model, variables, batch, **options)
        mask = batch["loss_mask"]
        losses = self._given.loss(model, variables, batch, key)
        if jnp.shape(losses) != mask.shape:
            raise ReslabError(
                "loss",
                expected=f"the loss of every token {mask.shape}",
                got=f"shape {jnp.shape(losses)}",
            )
        mask = mask.astype(losses.dtype)
        total = jnp.sum(losses * mask)
        sums = {"nll": total, "tokens": jnp.sum(mask)}
        return total, sums, variables.get(BATCH_STATS, {})

    def _whole(self, batch: Any, what: str, rows: int | None = None) -> dict[str, Any]:
        """A batch with the arrays that may be left out, checked.

        Args:
          batch: Arrays by name, or tokens.
          what: What to call it in errors.
          rows: Rows of the batch; those of the config's if None.

        Raises:
          ReslabError: If an array is missing, unknown or of another shape, or a token
            is not in the vocabulary.
        """
        shapes = self._shapes if rows is None else self._task.batch_shapes(rows)
        if self._task.unit == "tokens":
            batch = _of_tokens(batch, what, shapes)
        found = {key: np.asarray(value) for key, value in dict(batch).items()}
        size = self._task.model_fields().get("vocabulary_size", 0)
        for key in {"tokens", "targets"} & found.keys() if size else ():
            if np.any((found[key] < 0) | (found[key] >= size)):
                raise ReslabError(
                    f"{what}: {key}",
                    expected=f"0 to {size - 1}, the vocabulary of the config",
                    got=f"{np.min(found[key])} to {np.max(found[key])}",
                )
        for key in shapes.keys() | found.keys():
            wanted = shapes[key].shape if key in shapes else "no such array"
            got = found[key].shape if key in found else "none"
            if wanted != got and (key, got) != ("sizes", "none"):
                raise ReslabError(f"{what}: {key}", expected=f"{wanted}", got=f"{got}")
        whole = {key: value.astype(shapes[key].dtype) for key, value in found.items()}
        for key, value in whole.items():
            if value.dtype.kind in "iu" and np.any(value != found[key]):
                raise ReslabError(
                    f"{what}: {key}",
                    expected=f"whole numbers that {value.dtype} holds",
                    got=f"others, of {found[key].dtype}",
                )
        if rows is None and jax.process_count() == 1:
            _check_counted(whole, what)
        return whole


def _check_counted(arrays: Mapping[str, np.ndarray], what: str) -> None:
    """Refuses arrays without a token that counts: their mean loss would be 0 / 0."""
    mask = arrays.get("loss_mask")
    if mask is not None and not np.any(mask):
        raise ReslabError(
            f"{what}: loss_mask", expected="a token that counts", got="only zeros"
        )


def _of_tokens(batch: Any, what: str, shapes: Any) -> dict[str, Any]:
    """A batch of tokens from an array of one token more, or from some of its arrays."""
    rows, length = shapes["tokens"].shape
    if not hasattr(batch, "keys"):
        tokens = np.asarray(batch)
        if tokens.shape != (rows, length + 1):
            raise ReslabError(
                what,
                expected=f"tokens {(rows, length + 1)}, one more than data.length, or "
                "arrays by name",
                got=f"shape {tokens.shape}",
            )
        batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    ones = np.ones((rows, length), np.int32)
    usual = {
        "positions": np.cumsum(ones, axis=1) - 1,
        "segment_ids": ones,
        "loss_mask": ones,
    }
    return usual | dict(batch)


class _Batches(Iterator[dict[str, np.ndarray]]):
    """Batches of a function of their number, or of an iterable, in order."""

    def __init__(self, batches: Any, config: ConfigDict, whole: Callable[..., Any]):
        self._make = batches if callable(batches) else None
        self._iterator = iter(() if callable(batches) else batches)
        self._config, self._whole = config, whole
        self._next, self._drawn, self._last = 0, 0, {}

    def first(self) -> dict[str, np.ndarray]:
        """Returns batch 0, which `next` gives again."""
        batch = next(self)
        self._next = 0
        return batch

    def __next__(self) -> dict[str, np.ndarray]:
        number, self._next = self._next, self._next + 1
        if self._make:
            return self._whole(self._make(number), f"batch {number}")
        # Batch 0 may be asked for twice.
        if number < self._drawn - 1:
            raise ReslabError(
                f"batch {number}",
                expected="a function of the number of a batch, to go back",
                got="an iterator",
            )
        while self._drawn <= number:
            try:
                batch = next(self._iterator)
            except StopIteration:
                # A run reads ahead.
                if self._drawn < self._config.train.steps:
                    raise ReslabError(
                        "batches",
                        expected=f"{self._config.train.steps}, one for each step",
                        got=f"{self._drawn}",
                    ) from None
                break
            self._last = self._whole(batch, f"batch {self._drawn}")
            self._drawn += 1
        return self._last

    @property
    def state(self) -> int:
        """Examples given out so far."""
        return self._next * self._config.data.batch

    @state.setter
    def state(self, index: int) -> None:
        self._next = index // self._config.data.batch

    def close(self) -> None:
        """Passes: nothing works in the background."""


class _Rows:
    """The rows of some batches, as examples."""

    def __init__(self, batches: Iterable[Any], whole: Callable[..., Any]):
        found = []
        for number, one in enumerate(batches):
            arrays = one.values() if hasattr(one, "values") else [one]
            rows = len(next(iter(arrays), ()))
            found.append(whole(one, f"held_out[{number}]", rows))
        if not found or any(one.keys() != found[0].keys() for one in found):
            got = "none" if not found else "batches of different arrays"
            raise ReslabError("held_out", expected="batches alike", got=got)
        self.arrays = {
            key: np.concatenate([one[key] for one in found]) for key in found[0]
        }
        _check_counted(self.arrays, "held_out")

    def __len__(self) -> int:
        return len(self.arrays["loss_mask"])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {key: value[index] for key, value in self.arrays.items()}


def _sha256(arrays: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for key in sorted(arrays):
        found.update(key.encode())
        found.update(np.ascontiguousarray(arrays[key]).tobytes())
    return f"sha256 {found.hexdigest()[:12]}"
