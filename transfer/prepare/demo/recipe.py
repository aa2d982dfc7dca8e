"""Size and difficulty of the demo's sets: everything that can be tuned, in one place."""

from dataclasses import dataclass, field, replace

PHOTO_CLASSES = {
    "animal": ("hoofed_mammal", "pawed_mammal", "bird"),
    "flower": ("flower",),
    "fruit": ("fruit",),
    "coin": ("coin",),
}
"""Class of the set -> kinds of cut-outs in the list of photographs (`data/demo_photos.json`)."""


@dataclass(frozen=True)
class Recipe:
    """The size of a demo set. Lengths are pixels, counts are images."""

    size: str
    train: int
    val: int
    pretrain: int  # half object-centred, half crops of photographs
    knn_train: int
    knn_val: int
    classes: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(PHOTO_CLASSES))
    width: int = 320
    height: int = 240
    longer_side: tuple[int, int] = (90, 200)  # of an object, log-uniform; see also `upscale_limit`
    upscale_limit: float = 1.6  # a cut-out enlarged further is blurred, even at the scale of training
    objects: tuple[float, ...] = (0.5, 0.35, 0.15)  # probability of 1, 2, 3 ... objects in an image
    small_side: int = 128  # of the square images for pre-training and kNN

    def of_classes(self, classes: dict[str, tuple[str, ...]]) -> "Recipe":
        """The same recipe for other classes."""
        return replace(self, classes=classes)


RECIPES = {
    recipe.size: recipe
    for recipe in (
        Recipe("quick", train=120, val=32, pretrain=256, knn_train=120, knn_val=60),
        Recipe("standard", train=1200, val=200, pretrain=4096, knn_train=1200, knn_val=400),
        Recipe("full", train=6000, val=600, pretrain=12000, knn_train=2400, knn_val=800),
    )
}
