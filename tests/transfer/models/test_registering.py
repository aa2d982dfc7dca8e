"""Our classes give way to others of their name, before and after them, and other names still collide."""

import pytest
from fvcore.common.registry import Registry

from transfer.models.registering import register


def _make(name: str) -> type:
    return type(name, (), {})


@pytest.mark.parametrize("first", [False, True])
def test_theirs_is_used_whichever_is_first(first: bool) -> None:
    registry, theirs, ours = Registry("heads"), _make("Head"), _make("Head")
    steps = [lambda: registry.register(theirs), lambda: register(registry)(ours)]
    for step in steps if first else steps[::-1]:
        step()
    assert registry.get("Head") is theirs
    with pytest.raises(AssertionError, match="already registered"):
        registry.register(_make("Head"))  # a third one


def test_ours_is_used_alone_and_next_to_other_names() -> None:
    registry, ours, second = Registry("heads"), _make("Head"), _make("Second")
    assert register(registry)(ours) is ours and register(registry)(second) is second
    registry.register(_make("Third"))
    assert [registry.get(name) for name in ("Head", "Second")] == [ours, second]
    registry.register(other := _make("Head"))
    assert registry.get("Head") is other and registry.get("Second") is second
    with pytest.raises(AssertionError):
        registry.register(registry.get("Third"))
