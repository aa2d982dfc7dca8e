"""COCO's AP of boxes, masks and keypoints."""

import importlib.util
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, coco_evaluation

from transfer.metrics.patches import replaced


class Coco(COCOEvaluator):
    """AP of boxes, masks and keypoints, computed by faster-coco-eval if it is installed, otherwise by pycocotools."""

    def __init__(self, cfg: CfgNode, name: str) -> None:
        sigmas = tuple(cfg.TEST.KEYPOINT_OKS_SIGMAS)
        # detectron2 writes the json of a data set that was registered without one to this folder
        folder = None if hasattr(MetadataCatalog.get(name), "json_file") else f"{cfg.OUTPUT_DIR}/evaluation"
        # detectron2's own fast implementation is in detectron2._C
        super().__init__(name, output_dir=folder, use_fast_impl=False, kpt_oks_sigmas=sigmas)
        self.configured = tasks(cfg)

    def _tasks_from_predictions(self, predictions: list[dict[str, Any]]) -> list[str]:
        """Return the tasks; without predictions detectron2 would leave out masks and keypoints."""
        tasks: list[str] = super()._tasks_from_predictions(predictions) if predictions else self.configured
        return tasks

    def _eval_predictions(self, predictions: Any, img_ids: Any = None) -> None:
        faster = faster_class()
        integers = all(isinstance(key, int) for key in self._coco_api.imgs)
        if faster is None or not integers:  # faster-coco-eval accepts only integers
            super()._eval_predictions(predictions, img_ids)
            return
        with replaced(coco_evaluation, "COCOeval", faster):
            super()._eval_predictions(predictions, img_ids)


def faster_class() -> type | None:
    """Return faster-coco-eval's replacement of pycocotools' `COCOeval`; None if it is not installed."""
    if importlib.util.find_spec("faster_coco_eval") is None:
        return None
    from faster_coco_eval import COCO, COCOeval_faster

    class Faster(COCOeval_faster):
        """Accepts pycocotools' `COCO` objects, and evaluates every category as pycocotools does."""

        def __init__(self, truth: Any, found: Any, kind: str) -> None:
            super().__init__(COCO(truth.dataset), COCO(found.dataset), kind)
            # for keypoints, categories without annotations would be left out, but detectron2 expects all classes
            self.params.catIds = sorted(truth.getCatIds())

    return Faster


def tasks(cfg: CfgNode) -> list[str]:
    """Return the tasks that a model is trained for: `bbox`, `segm` and `keypoints`."""
    return ["bbox"] + ["segm"] * cfg.MODEL.MASK_ON + ["keypoints"] * cfg.MODEL.KEYPOINT_ON
