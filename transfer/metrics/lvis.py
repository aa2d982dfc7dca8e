"""LVIS' AP of boxes and masks."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import LVISEvaluator

from transfer.data.coco.safe_masks import check_masks
from transfer.metrics import ids
from transfer.metrics.coco import tasks
from transfer.metrics.patches import replaced

Results = dict[str, dict[str, float]] | None


class Lvis(LVISEvaluator):
    """LVIS AP with 300 detections per image, also for rare, common and frequent classes (APr, APc, APf)."""

    def __init__(self, cfg: CfgNode, name: str) -> None:
        """Read the annotations of the registered set `name`. Raises `UserError` for masks that cannot be compared."""
        super().__init__(name)
        self.configured = tasks(cfg)
        check_masks(name, self._lvis_api.dataset)

    def _tasks_from_predictions(self, predictions: list[dict[str, Any]]) -> tuple[str, ...]:
        tasks = super()._tasks_from_predictions(predictions) if predictions else self.configured
        return tuple(tasks)

    def evaluate(self) -> Results:
        """Return the metrics, with nan where lvis returns -1. Collective; None except in the main process."""
        import lvis

        numbers = ids.numbers(self._lvis_api.dataset)

        class SmallIds(lvis.LVISEval):
            def __init__(self, truth: Any, found: Any, kind: str) -> None:
                super().__init__(ids.renumbered(truth, numbers), ids.renumbered(found, numbers), kind)

        with replaced(lvis, "LVISEval", SmallIds):
            results = super().evaluate()
        if results is None:
            return None
        undefined = float("nan")
        return {
            task: {key: value if value >= 0 else undefined for key, value in values.items()}
            for task, values in results.items()
        }
