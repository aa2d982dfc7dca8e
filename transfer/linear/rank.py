"""`--rank`: which of several checkpoints has the better features, without labels (RankMe, Garrido et al. 2023)."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from pretrain.common import distributed
from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.common.files import write_json
from pretrain.common.pool import worker_failures
from pretrain.common.run_folder import held
from pretrain.common.signals import Signals
from pretrain.data.class_folders import SomeImages
from pretrain.train.knn_monitor import rankme
from transfer.linear import backbone, features
from transfer.linear.backbone import Extractor

IMAGES = 25_600  # as many as in the paper
FILE = "rankme.json"


def run(cfg: CfgNode, weights: Sequence[str], **choice: Any) -> list[dict[str, Any]]:
    """Measure RankMe of each file on the images of DATA.TRAIN, print a ranking, and write it to OUTPUT_DIR. Collective.

    Returns:
        A dict for each file, best first: `weights`, `digest` (of the file), `rankme`, `largest` (min(images,
        channels)) and `images`.
    Raises:
        UserError: a file or the images cannot be used; all files are read before the first computation.
    """
    folder = Path(cfg.OUTPUT_DIR)
    with ExitStack() as stack:
        stack.enter_context(held(folder))
        stack.enter_context(worker_failures("DATA.NUM_WORKERS", "SOLVER.IMS_PER_BATCH"))
        signals = stack.enter_context(Signals())
        for file in weights:
            backbone.load(file, cfg, **choice)
        images = SomeImages(cfg.DATA.TRAIN, key="DATA.TRAIN", limit=IMAGES)
        say(f"RankMe on {len(images.files)} images of {images.name}; more is better")
        found = [_measure(cfg, file, images, signals, **choice) for file in weights]
        found.sort(key=lambda each: -each["rankme"])
        if distributed.is_main():
            write_json(folder / FILE, {"images": images.name, "checkpoints": found})
        say(f"best: {found[0]['weights']}  ({folder / FILE})")
    return found


def _measure(cfg: CfgNode, file: str, images: SomeImages, signals: Signals, **choice: Any) -> dict[str, Any]:
    network = backbone.load(file, cfg, **choice)
    extract = Extractor(network, distributed.pick_device(cfg.DEVICE))
    parts = [rows[good] for rows, good in features.compute(images, extract, cfg, signals)]
    values = torch.cat([torch.from_numpy(part) for part in parts])
    if len(values) < 2:
        raise UserError(f"{images.name}: RankMe needs at least two images that can be read")
    rank, largest = rankme(values), min(values.shape)
    say(f"{file}: RankMe {rank:.1f} of {largest}")
    return {
        "weights": file,
        "digest": network.file_digest,
        "rankme": rank,
        "largest": largest,
        "images": len(values),
    }
