"""Tasks: data, the shift between training and test, the metric; a file each."""

from rims.tasks.adding import Adding
from rims.tasks.balls import Balls
from rims.tasks.balls_file import BallsFile
from rims.tasks.base import TASKS, Batch, DatasetTask, Features, Frames, Model, Split, Task, Tokens, register
from rims.tasks.copying import Copying
from rims.tasks.digits import Digits
from rims.tasks.moving_digits import MovingDigits
from rims.tasks.scifar import SequentialCIFAR
from rims.tasks.smnist import SequentialMNIST

__all__ = [
    "TASKS",
    "Adding",
    "Balls",
    "BallsFile",
    "Batch",
    "Copying",
    "DatasetTask",
    "Digits",
    "Features",
    "Frames",
    "Model",
    "MovingDigits",
    "SequentialCIFAR",
    "SequentialMNIST",
    "Split",
    "Task",
    "Tokens",
    "register",
]
