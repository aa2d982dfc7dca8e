"""Random numbers as pure functions of their purpose and counters: no state to store or to share with workers."""

import random

import numpy as np


def generator(purpose: str, *counters: int) -> np.random.Generator:
    """Return a generator that depends on its arguments only.

    Args:
        purpose: one word that separates the streams ("view", "order", ...).
        counters: non-negative integers, such as seed, epoch and index.
    """
    return np.random.default_rng([int.from_bytes(purpose.encode(), "little"), *counters])


def quick(purpose: str, *counters: int) -> random.Random:
    """Return a Python generator that depends on its arguments only, for a few single numbers.

    NumPy's takes ten times as long for each number. The seed of the Mersenne Twister is one integer with all arguments
    next to each other (64 bits for each counter), so no two argument lists of the same length share a seed.
    """
    key = int.from_bytes(purpose.encode(), "little")
    for counter in counters:
        key = key << 64 | int(counter)  # a NumPy integer would overflow
    return random.Random(key)
