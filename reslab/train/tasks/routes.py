"""Routers of a model of text: they learn the paths that a search has found."""

from reslab.train.tasks._lessons import Lessons
from reslab.train.tasks.language import Language


class Routes(Lessons, Language):
    """Trains routers on windows of a corpus; held-out figures are those of `language`.

    See `reslab.train.tasks._lessons.Lessons` for the loss and the arguments.
    """


build = Routes
