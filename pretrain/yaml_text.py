"""Reading YAML text that a stranger may have written: by PyYAML's safe loader, with limits on depth and size."""

import copy
from functools import lru_cache
from typing import Any

import yaml

_MAX_DEPTH = 32  # of nested lists and mappings
_MAX_NODES = 100_000  # keys and values of a text with its aliases expanded
_MAX_DIGITS = 400  # characters of a number
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def parse_yaml(text: str) -> Any:
    """Return the only document of a YAML text. Raises `ValueError` with a reason in one line.

    A few lines of aliases can expand to more data than memory holds, or hold themselves; a few kilobytes of digits can
    become a number that Python refuses to print.
    """
    return copy.deepcopy(_parse(text))


@lru_cache(maxsize=64)
def _parse(text: str) -> Any:
    """Parse a YAML text, which takes 20 ms for a config; planning a table reads each of its configs many times."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # PyYAML raises many classes on hostile text, such as KeyError for `!!bool 3`
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def _check_size(root: yaml.Node) -> None:
    """Raise `ValueError` for a document that is too large with its aliases expanded, or holds a very long number."""
    left, nodes = _MAX_NODES, [(root, 0)]
    while nodes:
        node, depth = nodes.pop()
        left -= 1
        if left < 0 or depth > _MAX_DEPTH:
            raise ValueError("its aliases hold themselves, or expand to too much data")
        if isinstance(node, yaml.MappingNode):
            nodes += [(part, depth + 1) for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            nodes += [(part, depth + 1) for part in node.value]
        elif node.tag in _NUMBERS and len(node.value) > _MAX_DIGITS:
            raise ValueError(f"it holds a number of {len(node.value)} characters")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which stops at deep nesting: it needs minutes for a few kilobytes of brackets."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.name = "<file>"
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node
