"""Filters on the columns of a row, as pyarrow and Python write them: `score > 0.5 and lang in ("en", "de")`.

A text is parsed by Python's own parser, and of its tree only comparisons of columns and constants, `in`, `is null`,
`and`, `or` and `not` are taken: nothing in it is ever run. What it says of a null, or of a value of another kind than
it is compared with, is neither true nor false, as in pyarrow and SQL, and a row for which it is not true is left
out."""

import ast
import functools
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from typing import Any, NamedTuple

EXAMPLE = "score > 0.5 and lang in ('en', 'de')"
_MOST, _DEEPEST = 4000, 100  # characters of a filter; brackets in brackets
_SIGNS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NAMES = {"null": None, "true": True, "false": False}
_KINDS = ((bool, "true or false"), (int | float, "a number"), (str, "a text"))

Value = str | int | float | bool | None


class FilterError(ValueError):
    """A text is no filter; says why."""


class Column(NamedTuple):
    """A column by its name; `a.b` is the field b in column a where no column is called so."""

    name: str

    def of(self, row: Mapping[Any, Any]) -> Any:
        """What a row has there; None where it has nothing."""
        value: Any = row
        for part in _parts(row, self.name):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


class _Compared(NamedTuple):
    left: "Column | Value"
    sign: str
    right: "Column | Value"


class _Among(NamedTuple):
    column: Column
    values: tuple[Value, ...]


class _IsNull(NamedTuple):
    column: Column


class _Not(NamedTuple):
    test: "_Test"


class _All(NamedTuple):
    tests: tuple["_Test", ...]


class _Any(NamedTuple):
    tests: tuple["_Test", ...]


_Test = Column | _Compared | _Among | _IsNull | _Not | _All | _Any


class RowFilter(NamedTuple):
    """A filter that was parsed."""

    test: _Test

    @property
    def identity(self) -> str:
        """The filter written in one way: the same for texts that differ in blanks, quotes and brackets alone."""
        return _written(self.test)

    @property
    def names(self) -> list[str]:
        """The columns that it names, in order."""
        return list(dict.fromkeys(found.name for found, _ in _uses(self.test)))

    def keeps(self, row: object) -> bool:
        """Whether it is true of a row."""
        return _holds(self.test, row if isinstance(row, Mapping) else {}) is True

    def is_read(self, name: str) -> bool:
        """Whether it needs the column of a table that is called so."""
        return any(name in (wanted, wanted.partition(".")[0]) for wanted in self.names)

    def unknown(self, rows: Sequence[Mapping[Any, Any]]) -> list[str]:
        """The columns that it names and that none of these rows has."""
        return [name for name in self.names if not any(_has(row, name) for row in rows)]

    def mismatches(self, rows: Sequence[Mapping[Any, Any]]) -> Iterator[str]:
        """What it compares with constants of another kind than all that these rows have, in words."""
        for column, kinds in _uses(self.test):
            found = {_kind(value): value for row in rows if (value := _plain(column.of(row))) is not None}
            if kinds and found and not kinds & found.keys():
                value = next(iter(found.values()))
                yield (
                    f"{column.name} is compared as {' or '.join(sorted(kinds))}, and holds "
                    f"{next(iter(found)) or type(value).__name__} ({str(value)[:60]!r})"
                )


@functools.lru_cache(maxsize=64)
def parse_filter(text: str) -> RowFilter:
    """The filter that a text is. Raises FilterError."""
    if len(text) > _MOST:
        raise FilterError(f"{len(text):,} characters are above the limit of {_MOST:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in texts
            tree = ast.parse(text.strip(), mode="eval").body
        _check_depth(tree)
        return RowFilter(_test(tree))
    except SyntaxError as error:
        where = f" at character {error.offset}" if error.offset else ""
        raise FilterError(f"{error.msg}{where}") from None
    except FilterError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        raise FilterError(str(error) or "nested too deeply") from None


def _check_depth(tree: ast.AST) -> None:
    level, depth = [tree], 0
    while level:
        level, depth = [inner for node in level for inner in ast.iter_child_nodes(node)], depth + 1
        if depth > _DEEPEST:
            raise FilterError("nested too deeply")


def _test(node: ast.expr) -> _Test:
    match node:
        case ast.BoolOp(op=ast.And()):
            return _All(tuple(map(_test, node.values)))
        case ast.BoolOp():
            return _Any(tuple(map(_test, node.values)))
        case ast.BinOp(op=ast.BitAnd()):
            return _All((_test(node.left), _test(node.right)))
        case ast.BinOp(op=ast.BitOr()):
            return _Any((_test(node.left), _test(node.right)))
        case ast.UnaryOp(op=ast.Not() | ast.Invert()):
            return _Not(_test(node.operand))
        case ast.Compare():
            operands = [node.left, *node.comparators]
            found = [
                _comparison(left, sign, right)
                for left, sign, right in zip(operands, node.ops, operands[1:], strict=False)
            ]
            return found[0] if len(found) == 1 else _All(tuple(found))
        case ast.Call(func=ast.Attribute(value=column, attr="isin"), args=[values], keywords=[]):
            return _Among(_column(column), _constants(values))
        case ast.Call(func=ast.Attribute(value=column, attr="is_null"), args=[], keywords=[]):
            return _IsNull(_column(column))
        case ast.Call(func=ast.Attribute(value=column, attr="is_valid"), args=[], keywords=[]):
            return _Not(_IsNull(_column(column)))
    found_column = _operand(node)
    if isinstance(found_column, Column):
        return found_column
    raise FilterError(f"{_shown(node)} stands where a comparison is expected")


def _comparison(left: ast.expr, sign: ast.cmpop, right: ast.expr) -> _Test:
    if isinstance(sign, ast.In | ast.NotIn):
        among = _Among(_column(left), _constants(right))
        return among if isinstance(sign, ast.In) else _Not(among)
    first, second = _operand(left), _operand(right)
    if isinstance(sign, ast.Is | ast.IsNot):
        if second is not None:
            raise FilterError(f"'is' stands before null alone, found {_shown(right)}")
        found = _IsNull(_column(left))
        return found if isinstance(sign, ast.Is) else _Not(found)
    if first is None or second is None:
        raise FilterError(f"nothing equals null: write {_shown(left if second is None else right)} is null")
    if not (isinstance(first, Column) or isinstance(second, Column)):
        raise FilterError(f"{_shown(left)} and {_shown(right)} are both constants")
    return _Compared(first, _SIGNS[type(sign)], second)


def _operand(node: ast.expr) -> Column | Value:
    match node:
        case ast.Name(id=name) if name.lower() in _NAMES:
            return _NAMES[name.lower()]
        case ast.Name(id=name):
            return Column(name)
        case ast.Attribute(value=inner, attr=name) if isinstance(before := _operand(inner), Column):
            return Column(f"{before.name}.{name}")
        case ast.Call(func=ast.Name("field") | ast.Attribute(attr="field"), args=[*names], keywords=[]) if names:
            parts = [_operand(name) for name in names]
            if all(isinstance(part, str) for part in parts):
                return Column(".".join(map(str, parts)))
        case ast.Constant(value=str() | bool() | int() | float() | None as constant):
            return constant
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
    raise FilterError(f"{_shown(node)} is no column and no constant")


def _column(node: ast.expr) -> Column:
    found = _operand(node)
    if not isinstance(found, Column):
        raise FilterError(f"{_shown(node)} stands where a column is expected: write field('...') for an unusual name")
    return found


def _constants(node: ast.expr) -> tuple[Value, ...]:
    if not isinstance(node, ast.Tuple | ast.List | ast.Set):
        raise FilterError(f"{_shown(node)} stands where a list of constants is expected, such as ('en', 'de')")
    found = [_operand(item) for item in node.elts]
    if wrong := next((item for item, value in zip(node.elts, found, strict=True) if isinstance(value, Column)), None):
        raise FilterError(f"{_shown(wrong)} is a column in a list of constants: texts stand in quotes")
    return tuple(value for value in found if not isinstance(value, Column))


def _shown(node: ast.expr) -> str:
    return ast.unparse(node)[:60]


def _holds(test: _Test, row: Mapping[Any, Any]) -> bool | None:
    """Whether it is true, false, or neither."""
    match test:
        case Column():
            value = test.of(row)
            return value if isinstance(value, bool) else None
        case _IsNull():
            return test.column.of(row) is None
        case _Not():
            found = _holds(test.test, row)
            return None if found is None else not found
        case _All():
            return _together((_holds(each, row) for each in test.tests), False)
        case _Any():
            return _together((_holds(each, row) for each in test.tests), True)
        case _Among():
            value = _plain(test.column.of(row))
            return None if value is None else any(_compare(value, "==", other) is True for other in test.values)
    left, right = (_plain(side.of(row)) if isinstance(side, Column) else side for side in (test.left, test.right))
    return _compare(left, test.sign, right)


def _written(test: _Test) -> str:
    match test:
        case Column():
            return f"field({test.name!r})"
        case _IsNull():
            return f"{_written(test.column)} is null"
        case _Not():
            return f"not ({_written(test.test)})"
        case _All():
            return f"({' and '.join(map(_written, test.tests))})"
        case _Any():
            return f"({' or '.join(map(_written, test.tests))})"
        case _Among():
            return f"{_written(test.column)} in {sorted(map(repr, test.values))}"
    sides = (_written(side) if isinstance(side, Column) else repr(side) for side in (test.left, test.right))
    return f" {test.sign} ".join(sides)


def _together(found: Iterable[bool | None], decides: bool) -> bool | None:
    neither = False
    for each in found:
        if each is decides:
            return decides
        neither = neither or each is None
    return None if neither else not decides


def _compare(left: Any, sign: str, right: Any) -> bool | None:
    kind = _kind(left)
    return _TESTS[sign](left, right) if kind and kind == _kind(right) else None


def _kind(value: object) -> str:
    """In words; empty where it can be compared with nothing."""
    return next((name for known, name in _KINDS if isinstance(value, known)), "")


def _plain(value: Any) -> Any:
    """A value as constants are written: times as ISO 8601 writes them."""
    if isinstance(value, date | time):
        return value.isoformat()
    return float(value) if isinstance(value, Decimal) else value


def _uses(test: _Test) -> Iterator[tuple[Column, set[str]]]:
    """Each column where it stands, and the kinds that it is compared with; none where any will do."""
    match test:
        case Column():
            yield test, {"true or false"}
        case _IsNull():
            yield test.column, set()
        case _Not():
            yield from _uses(test.test)
        case _All() | _Any():
            for each in test.tests:
                yield from _uses(each)
        case _Among():
            yield test.column, set(map(_kind, test.values)) - {""}
        case _Compared():
            for side, other in ((test.left, test.right), (test.right, test.left)):
                if isinstance(side, Column):
                    yield side, set() if isinstance(other, Column) else {_kind(other)}


def _parts(row: Mapping[Any, Any], name: str) -> list[str]:
    return [name] if name in row else name.split(".")


def _has(row: Mapping[Any, Any], name: str) -> bool:
    value: Any = row
    for part in _parts(row, name):
        if value is None:  # of a struct that is null
            return True
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return True
