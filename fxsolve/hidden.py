"""Objects whose state is in no attribute: random number generators, queues, what belongs to one thread.

That is too much to look at before each call. It is looked at around a recording: a call that changes it is not compiled, and to
one that does not it does not matter.
"""

from __future__ import annotations

import pickle
import queue
import random
import threading
from typing import Any

import numpy as np

HIDDEN = (random.Random, np.random.Generator, np.random.BitGenerator, np.random.RandomState, queue.Queue, threading.local)


def state_of(value: Any) -> Any:
    """The state of such an object, as something that can be compared: with nothing, where it cannot be had."""
    if isinstance(value, queue.Queue):
        return [id(item) for item in value.queue]
    if isinstance(value, threading.local):
        return {name: id(item) for name, item in vars(value).items()}
    try:
        return pickle.dumps(value)
    except Exception:  # random.SystemRandom has none: each number is another one
        return object()
