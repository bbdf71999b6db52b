"""reslab: the laboratory for the depth axis of neural networks.

    trained = reslab.train("tiny", changes={"train.steps": 60})
    reslab.generate(trained.directory, "def ")

`build`, `train`, `load`, `generate` and `inspect` are described in docs/PYTHON.md.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["build", "generate", "inspect", "load", "train"]


def __getattr__(name: str) -> Any:
    """Imports a function when it is asked for: `import reslab` imports nothing else."""
    if name == "train":  # A package that is also called.
        return importlib.import_module("reslab.train")
    if name == "load":
        return importlib.import_module("reslab.train.loading").load
    if name in __all__:
        return getattr(importlib.import_module("reslab.train.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
