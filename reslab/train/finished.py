"""Runs that have made their last step: their result needs no data and no model."""

import sys
from typing import Any

from ml_collections import ConfigDict

from reslab.core.errors import ReslabError
from reslab.runtime.inside import check_links
from reslab.train.changes import check_config
from reslab.train.run import Run
from reslab.train.tasks import make_task


def result_of(run: Run, config: ConfigDict) -> dict[str, Any] | None:
    """Returns the result of a run that has made its last step, else None."""
    found = run.result()
    return found if found is not None and found["step"] >= config.train.steps else None


def finished(run: Run, config: ConfigDict) -> dict[str, Any] | None:
    """Returns the result of a finished run if it is this config's, else None.

    Documents are compared with those that the run was begun on, without tokenizing
    them; where they are gone, the result stands without.

    Args:
      run: The run; it may be there, or not yet.
      config: The config to go on with.

    Raises:
      ReslabError: If the run holds another config, other data or other parts.
    """
    check_links(run.directory)
    check_config(run, config)
    result = result_of(run, config)
    if result is None:
        return None
    try:
        task = make_task(config)
        data = getattr(task, "digests", task.record)()
    except (ReslabError, OSError) as error:
        print(f"{run.directory}: its data were not compared: {error}", file=sys.stderr)
    else:
        run.check_data(data)
    return result
