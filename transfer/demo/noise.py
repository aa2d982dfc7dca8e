"""How much the numbers of `make demo` change from seed to seed, to be shown next to those of a single seed.

Measured once with three seeds (MoCo: two), by runs with the demo's settings: see docs/evidence.md. A demo of several
seeds needs none of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

SEEDS = "three seeds (MoCo: two)"
WHERE = "docs/evidence.md"


@dataclass(frozen=True)
class Noise:
    """Standard deviations over the seeds, in AP: box AP, AP50 and AP75, then mask AP, AP50 and AP75.

    Attributes:
        rows: initialisation -> those of its numbers.
        differences: initialisation -> those of its differences to random initialisation, seed by seed.
    """

    rows: Mapping[str, tuple[float, ...]]
    differences: Mapping[str, tuple[float, ...]]


# Size of the demo -> its noise.
MEASURED = {
    "standard": Noise(
        rows={
            "random": (2.2, 5.8, 1.1, 2.7, 5.6, 2.5),
            "moco": (2.3, 4.1, 2.5, 1.8, 3.0, 2.2),  # two seeds
            "supervised": (1.4, 2.9, 2.3, 1.9, 2.6, 1.5),
        },
        differences={"supervised": (1.9, 4.2, 2.6, 3.7, 6.3, 3.9)},
    )
}
