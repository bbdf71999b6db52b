"""Which cases of a study are asked for."""

import dataclasses
from collections.abc import Mapping

from reslab.core.errors import ReslabError, nearest
from reslab.study.algebra import Sweep
from reslab.study.declaration import Study


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which cases of a study are asked for.

    Attributes:
      names: Cases of the study, with their baselines; all if empty.
      more: Cases that are added to it.
    """

    names: tuple[str, ...] = ()
    more: Sweep = ()

    def options(self) -> list[str]:
        """Returns what asks for it on the command line."""
        found = ["--cases", *self.names] if self.names else []
        for one in self.more:
            fields = [f"{field}={value!r}" for field, value in one.fields.items()]
            found += ["--case", one.name, *fields]
        return found


ALL = Selection()


def selected(
    study: Study, baselines: Mapping[str, str | None], selection: Selection
) -> tuple[Study, dict[str, str | None]]:
    """Takes the part of a study that is asked for.

    Args:
      study: The study, with all cases.
      baselines: For every case its baseline, or None.
      selection: Names some of the cases.

    Returns:
      The study of these cases and their baselines, and their part of `baselines`.

    Raises:
      ReslabError: If there is no case of a name.
    """
    for name in selection.names:
        if name not in baselines:
            raise ReslabError(
                f"--cases: no case {name!r}", hint=nearest(name, list(baselines))
            )
    names = {*selection.names, *(one.name for one in selection.more)}
    names |= {base for name in names if (base := baselines[name]) is not None}
    part = dataclasses.replace(
        study,
        cases=tuple(one for one in study.cases if one.name in names),
        once=tuple(name for name in study.once if name in names),
    )
    return part, {case: base for case, base in baselines.items() if case in names}
