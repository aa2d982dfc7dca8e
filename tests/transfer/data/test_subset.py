"""Subsets of a training set are nested, reproducible, and have the requested number of objects."""

import itertools
from collections import Counter

import numpy as np
import pytest

from pretrain.common.errors import UserError
from transfer.data.subset import choose

RNG = np.random.default_rng(0)
CLASSES = [RNG.integers(0, 6, RNG.integers(0, 5)).tolist() for _ in range(200)]


def test_fractions_are_nested_and_of_the_right_size() -> None:
    parts = [choose(CLASSES, fraction=f, shots=0, seed=3) for f in (0.001, 0.01, 0.1, 0.5, 1.0)]
    assert [len(part) for part in parts] == [1, 2, 20, 100, 200]
    for small, large in itertools.pairwise(parts):
        assert set(small) < set(large)
        assert small == sorted(small)
    assert choose(CLASSES, fraction=0.1, shots=0, seed=3) == parts[2]
    assert choose(CLASSES, fraction=0.1, shots=0, seed=4) != parts[2]


def test_the_choice_stays_what_it_was() -> None:
    """Published results give (fraction, seed), so a release must not change the images that these choose."""
    assert choose([[0]] * 100, fraction=0.1, shots=0, seed=0) == [5, 16, 20, 36, 52, 72, 82, 90, 93, 94]


@pytest.mark.parametrize("shots", [1, 3, 10])
def test_shots_reach_every_class_with_no_image_in_vain(shots: int) -> None:
    chosen = choose(CLASSES, fraction=1, shots=shots, seed=0)
    counts = Counter(kind for i in chosen for kind in CLASSES[i])
    assert all(counts[kind] >= shots for kind in range(6))
    # in the order of the permutation, each image showed a class that still needed objects
    order = np.random.default_rng(0).permutation(len(CLASSES)).tolist()
    found: Counter[int] = Counter()
    for index in [i for i in order if i in set(chosen)]:
        assert any(found[kind] < shots for kind in CLASSES[index])
        found.update(CLASSES[index])
    assert set(chosen) <= set(choose(CLASSES, fraction=1, shots=shots + 1, seed=0))


def test_a_rare_class_keeps_all_it_has() -> None:
    data = [[0]] * 50 + [[1]] * 2
    assert {50, 51} < set(choose(data, fraction=1, shots=5, seed=0))


def test_mistakes_name_the_key() -> None:
    for options, key in (
        ({"fraction": 0.0, "shots": 0, "seed": 0}, "FRACTION 0"),
        ({"fraction": 1.5, "shots": 0, "seed": 0}, "FRACTION 1.5"),
        ({"fraction": float("nan"), "shots": 0, "seed": 0}, "FRACTION nan"),
        ({"fraction": 1.0, "shots": -1, "seed": 0}, "SHOTS -1"),
        ({"fraction": 1.0, "shots": 0, "seed": -1}, "SUBSET_SEED -1"),
    ):
        with pytest.raises(UserError, match=key):
            choose(CLASSES, **options)
    with pytest.raises(UserError, match="no image"):
        choose([], fraction=1, shots=0, seed=0)
    with pytest.raises(UserError, match="no annotated object"):
        choose([[], []], fraction=1, shots=1, seed=0)
    with pytest.raises(UserError, match=r"shows class 1, 2 \(counted from 0\).*FRACTION"):
        choose([[0]] * 99 + [[1, 2]], fraction=0.01, shots=1, seed=0)
