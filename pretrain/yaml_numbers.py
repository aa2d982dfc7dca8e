"""Number lists that a YAML file gives as a Python expression, worked out without running it.

detectron2's RetinaNet configs write `SIZES: !!python/object/apply:eval ["[x * 2**0.5 for x in [32, 64]]"]`,
which its loader hands to `eval`. Here the expression may hold numbers, their arithmetic, lists and loops over
lists, and nothing else.
"""

import ast
import operator
import re
from typing import Any

_EXPRESSION = re.compile(r'!!python/object/apply:eval \["([^"\n]{1,1000})"\]')
_OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: lambda base, exponent: float(base) ** float(exponent),  # whole numbers could fill the memory
}


def write_out(text: str) -> str:
    """The YAML text with each such expression replaced by its numbers; others stay, for YAML to refuse."""
    return _EXPRESSION.sub(_numbers, text)


def _numbers(found: re.Match[str]) -> str:
    try:
        return str(_value(ast.parse(found[1].strip(), mode="eval").body, {}))
    except (SyntaxError, KeyError, TypeError, ArithmeticError, ValueError, RecursionError):
        return found[0]


def _value(node: ast.AST, names: dict[str, Any]) -> Any:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name):
            return names[name]
        case ast.List(elts=parts):
            return [_value(part, names) for part in parts]
        case ast.BinOp(left=left, op=op, right=right):
            first, second = _value(left, names), _value(right, names)
            if isinstance(first, list) or isinstance(second, list):
                raise TypeError("a list times a number would repeat it")
            return _OPERATORS[type(op)](first, second)
        case ast.ListComp(
            elt=part, generators=[ast.comprehension(target=ast.Name(id=name), iter=source, ifs=[])]
        ):
            return [_value(part, {**names, name: item}) for item in _value(source, names)]
        case _:
            raise ValueError(f"{type(node).__name__} is no arithmetic")
