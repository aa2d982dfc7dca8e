"""Registering our classes with detectron2 next to those of the same name from the authors' own scripts."""

from collections.abc import Callable
from typing import Any, TypeVar

from fvcore.common.registry import Registry

_T = TypeVar("_T", bound=Callable[..., Any])


def register(registry: Registry) -> Callable[[_T], _T]:
    """Return a decorator that registers a class or function, which gives way to any other one of the same name.

    The authors' train_net.py registers `Res5ROIHeadsExtraNorm` too, before or after `import transfer`, and a registry
    raises for a name that is taken. If the name is taken already, ours is not registered; a later one replaces ours.
    """

    def decorate(ours: _T) -> _T:
        if ours.__name__ in registry:
            return ours
        registry.register(ours)
        add = registry._do_register

        def add_or_replace(name: str, other: Any) -> None:
            if other is not ours and registry._obj_map.get(name) is ours:
                del registry._obj_map[name]
            add(name, other)

        registry._do_register = add_or_replace
        return ours

    return decorate
