"""Training: state, step, loop, checkpoints, evaluation, generation.

The package is also the function `reslab.train`, which is `reslab.train.api.train`.
"""

import sys
import types
from typing import Any


class _Callable(types.ModuleType):
    """A package that can be called: Python gives a package and a function one name."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Calls `reslab.train.api.train`."""
        from reslab.train import api

        return api.train(*arguments, **keywords)


sys.modules[__name__].__class__ = _Callable
