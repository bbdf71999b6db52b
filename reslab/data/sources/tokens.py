"""A corpus that was tokenized before, on disk."""

import dataclasses
from collections.abc import Iterator

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.data.corpus import Corpus
from reslab.data.tokenized import open_corpus


@dataclasses.dataclass(frozen=True)
class TokensSource:
    """A corpus written by `reslab data tokenize`; it may be larger than memory.

    Attributes:
      path: The directory.
    """

    path: str = ""

    def corpus(self, tokenizer: registry.Spec) -> Corpus:
        """Opens the tokenized corpus.

        Raises:
          ReslabError: If it is missing, or another tokenizer made its tokens.
        """
        return open_corpus(self.path, tokenizer)

    def documents(self) -> Iterator[bytes]:
        """Refuses: its documents are tokens already."""
        raise ReslabError(
            "source tokens", expected="documents to tokenize", got="tokens"
        )


build = TokensSource
