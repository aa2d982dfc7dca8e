"""Mean IoU of labels per pixel."""

from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.evaluation import SemSegEvaluator

from pretrain.common.errors import UserError


class MeanIoUEvaluator(SemSegEvaluator):
    """detectron2's evaluator with the same results on v0.6 and main, and without output that is not used.

    `sem_seg`: `mIoU`, `fwIoU`, `mACC`, `pACC`, `IoU-CLASS`, `ACC-CLASS`, in percent, over the whole test set at the
    original image sizes, without pixels with the ignored label. Classes that do not occur in the labels are undefined
    and left out of mIoU. (v0.6 counts them as 0 if they are predicted; in the full sets of VOC and Cityscapes every
    class occurs.)
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._compute_boundary_iou = False  # an option of main: slow, and not used in the paper

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict[str, Any]]:
        """Return nothing: otherwise the masks of all images would be kept in memory and sent between processes."""
        return []

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return the metrics. Collective; None except in the main process."""
        results: dict[str, dict[str, float]] | None = super().evaluate()
        if results is not None:
            values = results["sem_seg"]
            values["mIoU"] = float(np.nanmean([values[f"IoU-{name}"] for name in self._class_names]))
        return results


def sem_seg_evaluator(name: str, cfg: CfgNode) -> MeanIoUEvaluator:
    """Return the evaluator of a data set with labels per pixel. Raise `UserError` if it does not fit `cfg`."""
    evaluator = MeanIoUEvaluator(name)
    head = cfg.MODEL.SEM_SEG_HEAD
    for key, found, needed in (
        ("NUM_CLASSES", head.NUM_CLASSES, evaluator._num_classes),
        ("IGNORE_VALUE", head.IGNORE_VALUE, evaluator._ignore_label),
    ):
        if found != needed:
            raise UserError(f"MODEL.SEM_SEG_HEAD.{key} {found}: {name} has {needed}; set it to {needed}")
    return evaluator
