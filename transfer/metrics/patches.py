"""Replace names in the modules of detectron2 and of the libraries it calls, for the duration of one evaluation."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Replace a name in a module inside a `with` block, so that detectron2 finds our object there."""
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


@contextlib.contextmanager
def results_of(module: Any, name: str) -> Iterator[list[Any]]:
    """Collect what a module's function returns inside a `with` block; detectron2 keeps only a part of it."""
    function, results = getattr(module, name), []

    def recorded(*arguments: Any, **options: Any) -> Any:
        results.append(function(*arguments, **options))
        return results[-1]

    with replaced(module, name, recorded):
        yield results
