"""Routers of a model of problems: they learn the paths that a search has found."""

from reslab.train.tasks._lessons import Lessons
from reslab.train.tasks.graded import Graded


class GradedRoutes(Lessons, Graded):
    """Trains routers on problems; held-out figures are those of `graded`.

    See `reslab.train.tasks._lessons.Lessons` for the loss and the arguments.
    """


build = GradedRoutes
