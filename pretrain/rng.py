"""Random numbers as pure functions of what they are for: no state to store, none to share with workers."""

import numpy as np


def generator(purpose: str, *counters: int) -> np.random.Generator:
    """A generator that depends on its arguments only.

    Args:
        purpose: one word that separates the streams ("view", "order", ...).
        counters: non-negative integers, such as seed, epoch and index.
    """
    return np.random.default_rng([int.from_bytes(purpose.encode(), "little"), *counters])
