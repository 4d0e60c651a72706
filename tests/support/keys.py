"""What a test sets: the configuration keys in its source and in the helpers that it reaches."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_WORD = re.compile(r"(?:^|[\s.,{\[])([a-z_]+)(?:=|: ?)([^\s,}]*)")


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Return every file below tests/ by its dotted name."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


@functools.cache
def tests() -> dict[str, list[tuple[str, ast.FunctionDef]]]:
    """Return {name of a test: [(its module, its function)]}."""
    found: dict[str, list[tuple[str, ast.FunctionDef]]] = {}
    for module, tree in modules().items():
        if module.rpartition(".")[2].startswith("test_"):
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                    found.setdefault(node.name, []).append((module, node))
    return found


def reached(module: str, node: ast.AST) -> list[ast.AST]:
    """Return a definition and those of the same file, or of tests.support, that it names."""
    seen: dict[tuple[str, str], ast.AST] = {}
    todo = [(module, node)]
    nodes = [node]
    while todo:
        where, current = todo.pop()
        for name in _names(current):
            home, known = _definition(where, name)
            if known is not None and (home, name) not in seen:
                seen[home, name] = known
                nodes.append(known)
                todo.append((home, known))
    return nodes


def assignments(node: ast.AST) -> Iterator[tuple[str, object]]:
    """Yield (key, value) of everything that sets a key; Ellipsis for what only a run would know.

    A key is set by a keyword, an attribute, an entry of a dictionary, or by text: `key=value`.
    """
    for part in ast.walk(node):
        if isinstance(part, ast.keyword) and part.arg:
            yield part.arg, _value(part.value)
        elif isinstance(part, ast.Dict):
            for key, value in zip(part.keys, part.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield key.value.rpartition(".")[2], _value(value)
        elif isinstance(part, ast.Assign):
            for target in part.targets:
                if isinstance(target, ast.Attribute):
                    yield target.attr, _value(part.value)
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            for key, text in _WORD.findall(part.value):
                yield key, text or ...


def forms(value: object) -> set[str]:
    """Return a default as `assignments` may yield it: as a literal, and as text."""
    text = {None: "null", True: "true", False: "false"}.get(value) if _is_word(value) else None
    return {repr(value), repr(text or str(value))}


def _is_word(value: object) -> bool:
    return value is None or isinstance(value, bool)


def asserts(node: ast.AST) -> bool:
    """Tell whether a definition asserts something, by itself or by a function of a library."""
    for part in ast.walk(node):
        if isinstance(part, ast.Assert):
            return True
        if isinstance(part, ast.Attribute) and part.attr.startswith("assert_"):
            return True
    return False


def _names(node: ast.AST) -> set[str]:
    found = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    if isinstance(node, ast.FunctionDef):
        found |= {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
    return found


@functools.cache
def _definitions(module: str) -> dict[str, ast.AST]:
    found: dict[str, ast.AST] = {}
    for node in modules()[module].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            names = [n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)]
            found |= dict.fromkeys(names, node)
    return found


def _definition(module: str, name: str) -> tuple[str, ast.AST | None]:
    if name in _definitions(module):
        return module, _definitions(module)[name]
    for node in modules()[module].body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests.support"):
            for alias in node.names:
                if name == (alias.asname or alias.name) and node.module in modules():
                    return node.module, _definitions(node.module).get(alias.name)
    return module, None


def _value(node: ast.AST) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ...
