"""How much the numbers of the demo change from seed to seed, to be shown next to those of a single seed.

Measured once with three seeds, by runs with the demo's settings: see docs/evidence.md. A demo of several
seeds needs none of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

SEEDS = "three seeds"
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


# What the page calls the network, and the size of the demo -> its noise.
MEASURED = {
    ("ResNet", "standard"): Noise(
        rows={
            "random": (0.7, 2.0, 0.2, 1.5, 2.7, 1.9),
            "moco": (1.1, 1.7, 0.7, 1.3, 2.2, 1.3),
            "supervised": (0.9, 2.7, 3.3, 0.6, 1.6, 0.7),
        },
        differences={
            "moco": (1.6, 3.0, 0.8, 2.6, 4.0, 3.2),
            "supervised": (1.1, 4.3, 3.4, 1.5, 3.9, 2.4),
        },
    ),
    ("ViT", "standard"): Noise(
        rows={
            "random": (1.7, 4.5, 0.5, 1.4, 3.9, 0.4),
            "moco_v3": (0.7, 2.5, 0.3, 0.7, 2.3, 0.2),
        },
        differences={"moco_v3": (1.1, 2.1, 0.4, 0.8, 1.9, 0.2)},
    ),
}
