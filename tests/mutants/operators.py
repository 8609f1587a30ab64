"""Generic mutants of a module: small changes of its syntax tree, each of which a test should notice.

The operators are those of mutmut and cosmic-ray: another comparison, ``and`` for ``or``, a condition turned round,
another number or truth value, another word, plus for minus, ``min`` for ``max``, another result, a statement, a keyword
argument or an element left out.

Left alone, because no rule is in them: docstrings, annotations, imports, decorators, fields of dataclasses and members
of enums, numbers of a module's named bounds (a test could only repeat them), and text for people (f-strings, what is
raised, strings that are no single word).
"""

from __future__ import annotations

import ast
import copy
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_WORD = re.compile(r"[a-z0-9][a-z0-9_.:/-]*")
_TYPE_ALIAS = re.compile(r"_?[A-Z]([A-Z]*[a-z]\w*)?")

_SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
_TURNED_ROUND = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
_OTHER_FUNCTION = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one module; ``function`` is the outermost function it is in, empty at the module's own level.

    ``in_body`` tells that it takes effect when the function is called, not when the module is imported. ``number``
    counts the module's mutants; ``key`` names the mutant by what it changes, whatever its line is.
    """

    module: str
    number: int
    line: int
    function: str
    operator: str
    key: str
    in_body: bool


@dataclass(frozen=True, slots=True)
class _Change:
    operator: str
    old: ast.AST
    new: ast.AST
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a node stands: in which function, in its body or in its defaults, and what kind of result it has."""

    function: str = ""
    in_body: bool = False
    results: str = ""
    is_condition: bool = False


def mutants_of(module: str, source: str) -> list[Mutant]:
    """All mutants of a module, in the order of its text."""
    seen: Counter[str] = Counter()
    found = []
    tree = ast.parse(source)
    called_at_import = {
        node.func.id
        for statement in tree.body
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        for node in ast.walk(statement)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    for number, (place, change) in enumerate(_changes(tree)):
        text = f"{place.function or '(module)'}: {change.before} → {change.after}"
        seen[text] += 1
        key = text if seen[text] == 1 else f"{text} #{seen[text]}"
        line = getattr(change.old, "lineno", 0)
        in_body = place.in_body and place.function not in called_at_import
        found.append(Mutant(module, number, line, place.function, change.operator, key, in_body))
    return found


def mutated(source: str, number: int) -> ast.Module:
    """The module with that one change."""
    tree = ast.parse(source)
    for index, (_, change) in enumerate(_changes(tree)):
        if index == number:
            _replace(tree, change)
            return ast.fix_missing_locations(tree)
    raise IndexError(number)


def _replace(tree: ast.Module, change: _Change) -> None:
    ast.copy_location(change.new, change.old)
    for node in ast.walk(tree):
        for name, value in ast.iter_fields(node):
            if value is change.old:
                setattr(node, name, change.new)
                return
            if isinstance(value, list):
                for index, element in enumerate(value):
                    if element is change.old:
                        value[index] = change.new
                        return


def _changes(tree: ast.Module) -> Iterator[tuple[_Place, _Change]]:
    for statement in tree.body:
        yield from _in_statement(statement, _Place())


def _in_statement(node: ast.stmt, place: _Place) -> Iterator[tuple[_Place, _Change]]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield from _in_function(node, place)
    elif isinstance(node, ast.ClassDef):
        for inner in node.body:
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _in_function(inner, _Place(f"{node.name}."))
    elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    elif not _is_silent(node) and (place.in_body or not _is_number_named(node)):
        for change in _of_statement(node, place):
            yield place, change
        yield from _inside(node, place)


def _in_function(node: ast.FunctionDef | ast.AsyncFunctionDef, place: _Place) -> Iterator[tuple[_Place, _Change]]:
    results = "" if node.returns is None else ast.unparse(node.returns)
    if place.in_body:
        here = _Place(place.function, in_body=True, results=results)
    else:
        here = _Place(f"{place.function}{node.name}", in_body=True, results=results)
        outside = _Place(here.function)
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                yield from _in_expression(default, outside)
    for statement in node.body:
        yield from _in_statement(statement, here)


def _is_silent(node: ast.stmt) -> bool:
    """Whether a statement has no rule in it: imports, docstrings, aliases of types."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
        return False
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return any(isinstance(target, ast.Name) and _TYPE_ALIAS.fullmatch(target.id) for target in targets)


def _is_number_named(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and _is_number(node.value)


def _is_number(node: ast.expr) -> bool:
    """Whether an expression is a number and nothing else: 64 * 1024, timedelta(hours=1)."""
    if isinstance(node, ast.BinOp):
        return _is_number(node.left) and _is_number(node.right)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "timedelta":
        return all(_is_number(value) for value in (*node.args, *(keyword.value for keyword in node.keywords)))
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def _inside(node: ast.AST, place: _Place) -> Iterator[tuple[_Place, _Change]]:
    """Changes of what a node consists of."""
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert):
        return
    condition = getattr(node, "test", None)
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            is_left_out = isinstance(node, ast.Set) or (isinstance(node, ast.Dict) and name == "keys")
            if is_left_out and isinstance(child, ast.Constant):
                continue  # another word is no better than none
            if isinstance(child, ast.stmt):
                yield from _in_statement(child, place)
            elif isinstance(child, ast.expr):
                yield from _in_expression(child, place, is_condition=child is condition or name == "ifs")
            elif isinstance(child, ast.AST):
                yield from _inside(child, place)


def _in_expression(node: ast.expr, place: _Place, *, is_condition: bool = False) -> Iterator[tuple[_Place, _Change]]:
    if _is_for_types(node):
        return
    for change in _of_expression(node, place, is_condition=is_condition):
        yield place, change
    yield from _inside(node, place)


def _is_for_types(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in {"cast", "TypeVar", "NewType"}


def _changed(operator: str, old: ast.AST, new: ast.AST) -> _Change:
    return _Change(operator, old, new, ast.unparse(old), ast.unparse(ast.fix_missing_locations(new)))


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _of_statement(node: ast.stmt, place: _Place) -> Iterator[_Change]:
    if not place.in_body:
        return
    removable = ast.AugAssign | ast.Continue | ast.Break | ast.Raise | ast.Delete
    is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await)
    is_update = isinstance(node, ast.Assign) and _is_update(node)
    if isinstance(node, removable) or is_call or is_update:
        yield _Change("statement", node, ast.Pass(), ast.unparse(node), "pass")
    if isinstance(node, ast.Return) and node.value is not None:
        yield from _of_return(node, node.value, place)


def _is_update(node: ast.Assign) -> bool:
    """Whether it gives something that exists another value: without it the function still runs."""
    read = {ast.unparse(inner) for inner in ast.walk(node.value) if isinstance(inner, ast.Name | ast.Attribute)}
    return any(
        isinstance(target, ast.Attribute | ast.Subscript) or ast.unparse(target) in read for target in node.targets
    )


def _of_return(node: ast.Return, value: ast.expr, place: _Place) -> Iterator[_Change]:
    text = ast.unparse(value)
    others = {"bool": ("True", "False"), "None": (), "": ()}.get(place.results, ("None",))
    is_truth_value = isinstance(value, ast.Constant) and isinstance(
        value.value, bool
    )  # the operator of constants has it
    for other in () if is_truth_value else others:
        if other != text:
            yield _changed("return", node, ast.Return(ast.parse(other, mode="eval").body))


def _of_expression(node: ast.expr, place: _Place, *, is_condition: bool) -> Iterator[_Change]:
    if is_condition and not isinstance(node, ast.Constant) and not _is_turned_by_its_operator(node):
        yield _changed("condition", node, ast.UnaryOp(ast.Not(), node))
    match node:
        case ast.Compare(ops=ops):
            for index, operator in enumerate(ops):
                swapped = _SWAPPED[type(operator)]()
                yield _changed("comparison", node, _with(node, ops=[*ops[:index], swapped, *ops[index + 1 :]]))
        case ast.BoolOp(op=operator):
            yield _changed("boolean", node, _with(node, op=_SWAPPED[type(operator)]()))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield _changed("boolean", node, copy.copy(operand))
        case ast.BinOp(op=operator) if type(operator) in _SWAPPED:
            yield _changed("arithmetic", node, _with(node, op=_SWAPPED[type(operator)]()))
        case ast.Constant(value=value):
            yield from _of_constant(node, value)
        case ast.Call(func=ast.Name(id=name)) if name in _OTHER_FUNCTION:
            yield _changed("function", node, _with(node, func=ast.Name(_OTHER_FUNCTION[name], ast.Load())))
    yield from _left_out(node, place)


def _is_turned_by_its_operator(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return True
    return isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], _TURNED_ROUND)


def _of_constant(node: ast.Constant, value: object) -> Iterator[_Change]:
    if isinstance(value, bool):
        yield _changed("constant", node, ast.Constant(not value))
    elif isinstance(value, int | float):
        yield _changed("constant", node, ast.Constant(value + 1))
    elif isinstance(value, str) and (value == "" or _WORD.fullmatch(value)):
        yield _changed("word", node, ast.Constant(f"x{value}x"))


def _left_out(node: ast.expr, place: _Place) -> Iterator[_Change]:
    """A keyword argument, an element of a set or tuple, or an entry of a table."""
    if isinstance(node, ast.Call):
        for index, keyword in enumerate(node.keywords):
            if keyword.arg is not None:
                new = _with(node, keywords=[*node.keywords[:index], *node.keywords[index + 1 :]])
                yield _Change("argument", node, new, f"{ast.unparse(node)}", f"without {keyword.arg}")
    elif isinstance(node, ast.Set) or (
        isinstance(node, ast.Tuple) and place.in_body and isinstance(node.ctx, ast.Load)
    ):
        for index, element in enumerate(node.elts if len(node.elts) > 1 else []):
            new = _with(node, elts=[*node.elts[:index], *node.elts[index + 1 :]])
            yield _Change("element", node, new, ast.unparse(node), f"without {ast.unparse(element)}")
    elif isinstance(node, ast.Dict):
        for index, (key, value) in enumerate(zip(node.keys, node.values, strict=True)):
            if isinstance(value, ast.Dict):
                continue  # a row without which nothing starts
            new = _with(
                node,
                keys=[*node.keys[:index], *node.keys[index + 1 :]],
                values=[*node.values[:index], *node.values[index + 1 :]],
            )
            entry = f"**{ast.unparse(value)}" if key is None else f"{ast.unparse(key)}: {_brief(value)}"
            yield _Change("entry", node, new, "a table", f"without {entry}")


def _brief(value: ast.expr) -> str:
    text = ast.unparse(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
