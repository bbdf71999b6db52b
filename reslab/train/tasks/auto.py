"""The task that a model names: its attribute `task`."""

from ml_collections import ConfigDict

from reslab.core import registry, surroundings
from reslab.train.tasks import Task


def build(config: ConfigDict) -> Task:
    """Makes the task of the model that a config names."""
    name = registry.parse(config.model.name).name
    task = registry.module("models", name).build.task
    return registry.make("tasks", task, **surroundings.Tasks(config=config))
