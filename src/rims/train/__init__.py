"""Training on Lightning's Trainer, the run folder, resuming.

Importing this costs nothing heavy: Lightning comes with :mod:`rims.train.fit`, :mod:`rims.train.evaluate` and
:mod:`rims.train.checkpoint`.
"""
