"""Several sources, each with a share of the training windows."""

import dataclasses
import hashlib
import math
from collections.abc import Iterator

import numpy as np

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.data.corpus import Corpus, TokenStream, load_corpus


@dataclasses.dataclass(frozen=True)
class MixtureSource:
    """Windows of several sources, evenly interleaved by weight.

    Each source is shuffled separately and repeated when exhausted; the shares hold
    from the first batch on, whatever the sizes. Held out is what each holds out, one
    after the other.

    Attributes:
      sources: Specs of the family `sources`.
      weights: Of each, any positive numbers; equal if empty.
    """

    sources: tuple[registry.Spec, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.sources or not all(isinstance(s, str) for s in self.sources):
            raise ReslabError(
                "source mixture: sources",
                expected="specs of sources",
                got=repr(self.sources),
            )
        for spec in self.sources:
            registry.factory("sources", spec)
        is_right = all(
            type(w) in (int, float) and math.isfinite(w) and w > 0 for w in self.weights
        )
        if not is_right or len(self.weights) not in (0, len(self.sources)):
            raise ReslabError(
                "source mixture: weights",
                expected=f"{len(self.sources)} positive numbers",
                got=repr(self.weights),
            )

    def corpus(self, tokenizer: registry.Spec) -> Corpus:
        """Loads every source.

        Raises:
          ReslabError: If one cannot be read, or is a mixture itself.
        """
        found = [load_corpus(spec, tokenizer) for spec in self.sources]
        if any(one.others for one in found):
            raise ReslabError("source mixture: sources", expected="no mixture in it")
        weights = np.asarray(self.weights or (1.0,) * len(found), np.float64)
        shares = (weights / weights.sum()).tolist()
        digest = hashlib.sha256()
        for one, share in zip(found, shares, strict=True):
            digest.update(f"{one.sha256} {share:.12f}\n".encode())
        stored = [one.tokens_sha256 for one in found]
        lengths = [len(one.validation.tokens) for one in found]
        offsets = np.cumsum([0, *lengths[:-1]])
        held_out = TokenStream(
            np.concatenate([np.asarray(one.validation.tokens) for one in found]),
            np.concatenate(
                [
                    one.validation.starts + offset
                    for one, offset in zip(found, offsets, strict=True)
                ]
            ),
            None
            if any(one.validation.sizes is None for one in found)
            else np.concatenate([np.asarray(one.validation.sizes) for one in found]),
        )
        return dataclasses.replace(
            found[0],
            validation=held_out,
            sha256=digest.hexdigest(),
            documents=sum(one.documents for one in found),
            bytes=sum(one.bytes for one in found),
            tokens_sha256=hashlib.sha256(repr(stored).encode()).hexdigest()
            if any(stored)
            else None,
            stored=tuple(file for one in found for file in one.stored),
            others=tuple(
                (one.train, share)
                for one, share in zip(found[1:], shares[1:], strict=True)
            ),
        )

    def documents(self) -> Iterator[bytes]:
        """Refuses: a mixture is of windows."""
        raise ReslabError(
            "source mixture",
            expected="one source to tokenize",
            got=f"{len(self.sources)}",
            hint="tokenize each, and mix source tokens(path=...)",
        )


build = MixtureSource
