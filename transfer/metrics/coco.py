"""COCO's AP of boxes, masks and keypoints."""

import contextlib
import copy
import importlib.util
import io
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from pycocotools.cocoeval import COCOeval

from transfer.data.coco.safe_masks import check_masks
from transfer.metrics import ids
from transfer.metrics.patches import replaced


class Coco(COCOEvaluator):
    """AP of boxes, masks and keypoints, computed by faster-coco-eval if it is installed, otherwise by pycocotools."""

    def __init__(self, cfg: CfgNode, name: str) -> None:
        """Read the annotations of the registered set `name`. Raises `UserError` for masks that cannot be compared."""
        sigmas = tuple(cfg.TEST.KEYPOINT_OKS_SIGMAS)
        # detectron2 writes the json of a data set that was registered without one to this folder
        folder = None if hasattr(MetadataCatalog.get(name), "json_file") else f"{cfg.OUTPUT_DIR}/evaluation"
        # detectron2's own fast implementation is in detectron2._C
        super().__init__(name, output_dir=folder, use_fast_impl=False, kpt_oks_sigmas=sigmas)
        self.configured = tasks(cfg)
        check_masks(name, self._coco_api.dataset)

    def _tasks_from_predictions(self, predictions: list[dict[str, Any]]) -> list[str]:
        """Return the tasks; without predictions detectron2 would leave out masks and keypoints."""
        tasks: list[str] = super()._tasks_from_predictions(predictions) if predictions else self.configured
        return tasks

    def _eval_predictions(self, predictions: Any, img_ids: Any = None) -> None:
        numbers = ids.numbers(self._coco_api.dataset)
        some = None if img_ids is None else [numbers.images[key] for key in img_ids]
        evaluation = _with_small_ids(faster_class() or coco_evaluation.COCOeval, numbers)
        with replaced(coco_evaluation, "COCOeval", evaluation):
            super()._eval_predictions(predictions, some)

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: list[str] | None = None
    ) -> dict[str, float]:
        """Return the metrics. A model that finds nothing has an AP of 0, which detectron2 would leave undefined."""
        found: dict[str, float] = super()._derive_coco_results(
            coco_eval or self._nothing_found(iou_type), iou_type, class_names
        )
        return found

    def _nothing_found(self, iou_type: str) -> COCOeval:
        """Return the evaluation of no detections; what has no annotated objects stays undefined in it."""
        nothing = copy.copy(self._coco_api)
        nothing.dataset = {**self._coco_api.dataset, "annotations": []}
        small = _with_small_ids(COCOeval, ids.numbers(self._coco_api.dataset))
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            evaluation: COCOeval = small(self._coco_api, nothing, iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation


def _with_small_ids(evaluation: type, numbers: ids.Numbers) -> type:
    """Return a `COCOeval` class that gives the same results whatever the ids of the file are."""

    class SmallIds(evaluation):
        def __init__(self, truth: Any, found: Any, kind: str) -> None:
            super().__init__(ids.renumbered(truth, numbers), ids.renumbered(found, numbers), kind)

    return SmallIds


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
