"""The import hook of `import transfer`: it extends plain detectron2, so that its own trainers run our YAML files.

It applies the fixes that detectron2 needs with current libraries (`transfer.d2_compat`), adds our config keys to
detectron2's defaults and the norm `LN` to v0.6, and registers the paper's heads and backbones. Each step runs when
detectron2 is imported, so it costs nothing in a program that does not import detectron2, and does not fail where
detectron2 is not installed.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from transfer.config.keys import add_keys


def _apply_fixes() -> None:
    importlib.import_module("transfer.d2_compat")


def _add_keys() -> None:
    defaults = importlib.import_module("detectron2.config.defaults")
    add_keys(defaults._C)


def _register() -> None:
    for name in ("paper_heads", "segmentation", "vit"):
        importlib.import_module(f"transfer.models.{name}")


def _add_norm() -> None:
    channel_norm = importlib.import_module("transfer.models.channel_norm")
    channel_norm.add_to_detectron2(sys.modules["detectron2.layers.batch_norm"])


def _watch_masks() -> None:
    importlib.import_module("transfer.data.coco.safe_masks").watch()


# module of detectron2, or of a library that it uses -> what to do after its first import
_AFTER: dict[str, Callable[[], None]] = {
    "detectron2": _apply_fixes,
    "detectron2.config": _add_keys,
    "detectron2.layers.batch_norm": _add_norm,
    "detectron2.modeling": _register,
    "pycocotools.mask": _watch_masks,
}


class _Follow(importlib.abc.MetaPathFinder):
    """A finder that leaves the search to the other finders, and runs a function after the module is imported."""

    def __init__(self, after: dict[str, Callable[[], None]]) -> None:
        self.waiting = dict(after)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        follow = self.waiting.pop(fullname, None)
        if follow is None:
            return None
        spec = importlib.util.find_spec(fullname)  # by the other finders: this name is not in `waiting` now
        if spec is None or spec.loader is None:
            self.waiting[fullname] = follow  # not installed yet
            return None
        execute = spec.loader.exec_module

        def execute_and_follow(module: ModuleType) -> None:
            try:
                execute(module)
            except ImportError as error:
                # from one of its libraries: fvcore is missing, OpenCV finds no libGL
                text = f"detectron2 cannot be imported ({error}): run `make setup` to repair its libraries"
                raise ImportError(text, name="detectron2") from error
            follow()

        spec.loader.exec_module = execute_and_follow  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Watch for imports of detectron2 from now on, and do now what is due for modules that are already imported."""
    done = [name for name in _AFTER if name in sys.modules]
    sys.meta_path.insert(0, _Follow({name: act for name, act in _AFTER.items() if name not in done}))
    for name in done:
        _AFTER[name]()
