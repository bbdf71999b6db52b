"""Probes: what happens inside a model, by depth."""

from collections.abc import Sequence

from reslab.core import registry
from reslab.observe.probes._view import Quantity


def quantities(specs: Sequence[str] | None = None) -> dict[str, Quantity]:
    """Title and axis of the results `<probe>/<quantity>`.

    Args:
      specs: The probes; all that reslab has if None.
    """
    found = {}
    for spec in registry.names("probes") if specs is None else specs:
        name = registry.parse(spec).name
        for key, quantity in registry.module("probes", name).build.quantities.items():
            found[f"{name}/{key}"] = quantity
    return found
