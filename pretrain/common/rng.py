"""Random numbers as pure functions of what they are for: no state to store, none to share with workers."""

import random

import numpy as np


def generator(purpose: str, *counters: int) -> np.random.Generator:
    """A generator that depends on its arguments only.

    Args:
        purpose: one word that separates the streams ("view", "order", ...).
        counters: non-negative integers, such as seed, epoch and index.
    """
    return np.random.default_rng([int.from_bytes(purpose.encode(), "little"), *counters])


def quick(purpose: str, *counters: int) -> random.Random:
    """As `generator`, for a few single numbers: NumPy's takes ten times as long over each.

    Python's Mersenne Twister, seeded by one integer that holds the arguments side by side (64 bits for each
    counter), so that no two lists of the same length share a seed; `Random` spreads it over the whole state.
    """
    key = int.from_bytes(purpose.encode(), "little")
    for counter in counters:
        key = key << 64 | int(counter)  # a NumPy integer would overflow
    return random.Random(key)
