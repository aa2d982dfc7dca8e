"""Use a fine-tuned detector on new images: `Predictor` from Python, `tools/predict.py` from the command line."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transfer.predict.predictor import Detections as Detections
    from transfer.predict.predictor import Predictor as Predictor


def __getattr__(name: str) -> Any:
    """Import the classes when they are first used: `tools/predict.py --help` needs neither PyTorch nor detectron2."""
    if name in ("Detections", "Predictor"):
        from transfer.predict import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
