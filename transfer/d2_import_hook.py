"""What `import transfer` does for plain detectron2, so that its own trainers run our YAML files.

Mends that detectron2 and today's libraries need (`transfer.d2_compat`), our config keys in its defaults, and the
paper's heads and backbones in its registries. Each waits until detectron2 is imported: a program that does
not import it pays nothing, and none of this fails where it is not installed.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from transfer.config.keys import add_keys


def _mend() -> None:
    importlib.import_module("transfer.d2_compat")


def _add_keys() -> None:
    defaults = importlib.import_module("detectron2.config.defaults")
    add_keys(defaults._C)


def _register() -> None:
    for name in ("paper_heads", "segmentation"):
        importlib.import_module(f"transfer.models.{name}")


# module of detectron2 -> what follows its first import
_AFTER: dict[str, Callable[[], None]] = {
    "detectron2": _mend,
    "detectron2.config": _add_keys,
    "detectron2.modeling": _register,
}


class _Follow(importlib.abc.MetaPathFinder):
    """Finds modules as everyone does, and runs what is to follow once they are imported."""

    def __init__(self, after: dict[str, Callable[[], None]]) -> None:
        self.waiting = dict(after)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        follow = self.waiting.pop(fullname, None)
        if follow is None:
            return None
        spec = importlib.util.find_spec(fullname)  # the other finders: this one waits for it no longer
        if spec is None or spec.loader is None:
            self.waiting[fullname] = follow  # not installed yet
            return None
        execute = spec.loader.exec_module

        def execute_and_follow(module: ModuleType) -> None:
            try:
                execute(module)
            except ImportError as error:  # one of its libraries: fvcore is missing, OpenCV finds no libGL
                text = f"detectron2 does not import ({error}): run `make setup` to repair its libraries"
                raise ImportError(text, name="detectron2") from error
            follow()

        spec.loader.exec_module = execute_and_follow  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Follow detectron2's imports from now on; make up for those that came first."""
    done = [name for name in _AFTER if name in sys.modules]
    sys.meta_path.insert(0, _Follow({name: act for name, act in _AFTER.items() if name not in done}))
    for name in done:
        _AFTER[name]()
