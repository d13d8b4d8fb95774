"""Tasks: data, the shift between training and test, the metric; a file each."""

from rims.tasks.base import TASKS, Batch, Features, Task, Tokens, register
from rims.tasks.copying import Copying

__all__ = ["TASKS", "Batch", "Copying", "Features", "Task", "Tokens", "register"]
