"""Figures of the whole package: no rings, packages of a few files, tests in proportion, nothing twice.

`python tests/architecture/test_figures.py` prints them.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE, TESTS = ROOT / "src" / "mst", ROOT / "tests"
MOST_FILES, LEAST_TESTS, SCREEN, SAME_LINES = 15, 0.6, 150, 6


def lines_of(folder: Path) -> int:
    """Return the lines of all Python files below a folder."""
    return sum(path.read_text().count("\n") for path in folder.rglob("*.py"))


def files_by_package() -> dict[str, int]:
    """Return the number of modules of each package, `__init__` not counted."""
    found: dict[str, int] = defaultdict(int)
    for path in SOURCE.rglob("*.py"):
        if path.name != "__init__.py":
            found[str(path.parent.relative_to(SOURCE.parent))] += 1
    return dict(found)


def imported_packages() -> dict[str, set[str]]:
    """Return which packages each package imports, anywhere in a file: at the top, in functions, by lazy tables."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        own = parts[0] if len(parts) > 1 else f"{parts[0]} (file)"
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("mst."):
                names.append(node.value)
            for name in names:
                bits = name.split(".")
                if bits[0] != "mst" or not all(bit.isidentifier() for bit in bits):
                    continue
                target = bits[1] if len(bits) > 1 else "__init__"
                target = target if (SOURCE / target).is_dir() else f"{target} (file)"
                if target != own:
                    found[own].add(target)
    return dict(found)


def cycles(graph: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """Return the packages that import each other in a ring, each ring once."""
    found: set[tuple[str, ...]] = set()

    def walk(path: tuple[str, ...]) -> None:
        for after in graph.get(path[-1], set()):
            if after == path[0]:
                found.add(path)
            elif after > path[0] and after not in path:
                walk((*path, after))

    for start in graph:
        walk((start,))
    return sorted(found)


def statements(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) of the lines that do something.

    Left out are blanks, comments, imports, docstrings, the parameters of a function, the fields of a record, and the
    arguments of a call that are handed on one to a line: two of a kind have them alike.
    """
    passed: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        said = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if said or isinstance(node, ast.Import | ast.ImportFrom | ast.AnnAssign):
            passed |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, ast.FunctionDef):
            passed |= set(range(node.lineno, node.body[0].lineno))
        elif isinstance(node, ast.keyword) and isinstance(node.value, ast.Name | ast.Attribute):
            passed.add(node.value.lineno)
    for number, line in enumerate(path.read_text().splitlines(), 1):
        text = line.strip()
        if number not in passed and text and not text.startswith("#"):
            yield number, text


def written_twice() -> list[str]:
    """Return places where `SAME_LINES` lines in succession stand in two places of the sources."""
    seen: dict[tuple[str, ...], str] = {}
    found: list[str] = []
    for path in sorted(SOURCE.rglob("*.py")):
        rows = list(statements(path))
        for at in range(len(rows) - SAME_LINES + 1):
            block = tuple(text for _, text in rows[at : at + SAME_LINES])
            place = f"{path.relative_to(SOURCE)}:{rows[at][0]}"
            other = seen.setdefault(block, place)
            if other != place:
                found.append(f"{place} = {other}")
    return found


def test_no_package_imports_another_in_a_ring() -> None:
    assert cycles(imported_packages()) == []


def test_packages_can_be_looked_over() -> None:
    large = {name: count for name, count in files_by_package().items() if count > MOST_FILES}
    large.pop("mst/commands", None)  # a file a command, by its name: there is nothing to look for
    assert large == {}


def test_there_are_tests_enough() -> None:
    assert lines_of(TESTS) >= LEAST_TESTS * lines_of(SOURCE)


def test_the_algorithm_is_on_one_screen() -> None:
    assert (SOURCE / "objective" / "mst.py").read_text().count("\n") <= SCREEN


def test_nothing_is_written_twice() -> None:
    assert written_twice() == []


if __name__ == "__main__":
    print("files by package:", dict(sorted(files_by_package().items(), key=lambda pair: -pair[1])))
    print("rings of imports:", cycles(imported_packages()) or "none")
    print(f"lines: src {lines_of(SOURCE)}, tests {lines_of(TESTS)}, ratio {lines_of(TESTS) / lines_of(SOURCE):.2f}")
    print(f"objective/mst.py: {(SOURCE / 'objective' / 'mst.py').read_text().count(chr(10))} lines")
    print(f"{SAME_LINES} lines written twice:", written_twice() or "none")
