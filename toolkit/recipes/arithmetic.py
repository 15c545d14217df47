"""Arithmetic of a recipe's `eval(…)`, worked out step by step: nothing is executed.

Every number on the way is bounded, so that no expression takes long or much memory.
"""

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

MAX_LENGTH = 200  # characters of one expression
LARGEST = 1e15  # of any number on the way; integers stay exact in a float
OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: lambda base, exponent: float(base) ** float(exponent),  # overflows, instead of growing
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "round": round,
    "int": int,
    "float": float,
}


def evaluate(expression: str, lookup: Callable[[str], float]) -> float:
    """Work an expression out.

    Args:
        expression: Numbers, names, `+ - * / // % **`, parentheses, min, max, round, int, float.
        lookup: Returns the number that a name stands for.

    Returns:
        A finite int or float, at most `LARGEST` in size.

    Raises:
        ValueError: It is anything else, or has no result; the argument says why.
    """
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"an expression of {len(expression)} characters, more than {MAX_LENGTH}")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        return _value(tree.body, lookup)
    except (SyntaxError, MemoryError, RecursionError):  # as ast.parse calls what is nested too deep
        raise ValueError("no arithmetic expression") from None
    except OverflowError:
        raise ValueError(f"a number on the way that is above {LARGEST:g}") from None
    except (ArithmeticError, TypeError) as error:
        raise ValueError(f"no result: {error}") from None


def _value(node: ast.expr, lookup: Callable[[str], float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _checked(number)
        case ast.Name(id=name):
            return _checked(lookup(name))
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner, lookup)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _value(inner, lookup)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            a, b = _value(left, lookup), _value(right, lookup)
            result = _checked(OPERATORS[type(op)](a, b))
            is_whole = isinstance(a, int) and isinstance(b, int) and result == int(result)
            return int(result) if isinstance(op, ast.Pow) and is_whole else result
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            return _checked(FUNCTIONS[name](*(_value(each, lookup) for each in args)))
    raise ValueError(
        "only numbers, variables, + - * / // % ** and min, max, round, int, float are worked out"
    )


def _checked(number: Any) -> float:
    if not isinstance(number, int | float) or abs(number) > LARGEST or math.isnan(number):
        raise ValueError(f"a number on the way that is above {LARGEST:g}, or is none")
    return number
