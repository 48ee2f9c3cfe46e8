"""The rooms' imports: the table in CONTRIBUTING.md, held against the code."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vimoe_jax"
FACE = "__init__"  # the package's own, which imports when it is asked


def table():
    """Room -> rooms it may import, as CONTRIBUTING.md says."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `vimoe_jax/(\S+?)` \| .* \| (.*) \|$", text, re.MULTILINE)
    return {
        room.removesuffix(".py"): set(re.findall(r"`([\w/]+)`", allowed)) for room, allowed in rows
    }


def room_of(module, rooms):
    """The room of a module (dotted, without the package): the longest that the table names."""
    path = module.replace(".", "/")
    fitting = [room for room in rooms if path == room or path.startswith(f"{room}/")]
    return max(fitting, key=len, default=None)


def modules():
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        yield name, file


def imports(file, known):
    """Modules of the package that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vimoe_jax":
            module = node.module.removeprefix("vimoe_jax").removeprefix(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".removeprefix(".")
                yield node.lineno, inner if inner in known else module or FACE
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("vimoe_jax."):
                    yield node.lineno, alias.name.removeprefix("vimoe_jax.")


@pytest.fixture(scope="module")
def graph():
    known = {name for name, _ in modules()}
    return {name: list(imports(file, known)) for name, file in modules()}


def test_every_room_is_in_the_table(graph):
    rooms = table()
    assert [name for name in graph if name != FACE and room_of(name, rooms) is None] == []


def test_imports_go_downward(graph):
    rooms, wrong = table(), []
    for name, found in graph.items():
        mine = room_of(name, rooms)
        for line, target in found:
            theirs = room_of(target, rooms)
            if name != FACE and theirs != mine and theirs not in rooms.get(mine, ()):
                wrong.append(f"{name}:{line} ({mine}) imports {target} ({theirs})")
    assert not wrong, "\n".join(wrong)


def test_the_table_has_no_circle():
    rooms, floors = table(), {}
    while len(floors) < len(rooms):
        ready = [r for r in rooms if r not in floors and all(a in floors for a in rooms[r])]
        assert ready, f"a circle among {sorted(set(rooms) - set(floors))}"
        floors |= dict.fromkeys(ready, len(floors))


def test_no_modules_import_each_other_in_a_circle(graph):
    order, open_, circles = [], [], []

    def visit(name):
        if name in open_:
            circles.append(" -> ".join([*open_[open_.index(name) :], name]))
        if name in open_ or name in order:
            return
        open_.append(name)
        for _, target in graph.get(name, ()):
            if target != name:
                visit(target)
        order.append(open_.pop())

    for name in graph:
        visit(name)
    assert not circles, "\n".join(circles)
