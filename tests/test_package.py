"""What is shipped, and what importing it costs."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import lyapunov

from .helpers import not_none


ROOT = Path(__file__).parent.parent
PRIVATE_ROOMS = {"command"}
STUDIES = ("analysis", "experiments", "studies", "proofs", "oracles")
ROOMS = sorted(
    place.parent.name
    for place in (ROOT / "lyapunov").glob("*/__init__.py")
    if place.parent.name not in PRIVATE_ROOMS
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel's names, built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    code = (
        "import sys; from hatchling.build import build_wheel; "
        "print(build_wheel(sys.argv[1]))"
    )
    pytest.importorskip("hatchling", reason="the build backend is not installed here")
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    name = done.stdout.strip().splitlines()[-1]
    with zipfile.ZipFile(folder / name) as archive:
        return archive.namelist()


def test_only_the_library_is_in_the_wheel(wheel):
    """Assert that analysis, experiments and oracles would shadow nobody's folders."""
    tops = {name.split("/")[0] for name in wheel}
    shipped = {top for top in tops if not top.endswith(".dist-info")}
    assert shipped == {"lyapunov", "pytest_lyapunov_check.py"}


def test_what_the_library_reads_is_in_the_wheel(wheel):
    """Assert that model, text, schema, template and type marker are shipped."""
    for name in (
        "lyapunov/assets/mamba1-bytes/model.safetensors",
        "lyapunov/assets/mamba1-bytes/config.json",
        "lyapunov/assets/mamba1-bytes/heldout.txt",
        "lyapunov/report/check-v1.schema.json",
        "lyapunov/report/page.html.j2",
        "lyapunov/report/page.css",
        "lyapunov/py.typed",
    ):
        assert name in wheel


def test_importing_the_library_loads_nothing_heavy():
    """Assert that `import lyapunov` leaves jax, torch and matplotlib alone."""
    code = (
        "import sys, lyapunov; "
        "print([m for m in ('jax', 'torch', 'sympy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    """Assert that what `__all__` promises can be had, and what it doesn't can't."""
    rooms = [lyapunov, *(getattr(lyapunov, name) for name in ROOMS)]
    for room in rooms:
        assert room.__all__
        for name in room.__all__:
            assert getattr(room, name) is not None
    misspelt = "lyapunow"
    with pytest.raises(AttributeError, match=misspelt):
        getattr(lyapunov, misspelt)


def private_imports(source: str, room: str) -> list[str]:
    """What a file of a study takes that its owner keeps to itself.

    A name or module of the library that begins with an underscore, a module of another
    room's that does, or a name of its own room's.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            before = [*(node.module or "").split(".")]
            names = [[*before, alias.name] for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node).split(".")]
        else:
            continue
        for parts in names:
            own = parts[0] == room or getattr(node, "level", 0)
            if parts[0] not in ("lyapunov", *STUDIES) and not own:
                continue
            hidden = [part for part in parts if part.startswith("_")]
            module = ROOT / room / f"{parts[-1]}.py"
            if hidden and not (own and (parts[-1] not in hidden or module.exists())):
                found.append(".".join(parts))
    return found


@pytest.mark.parametrize("room", STUDIES)
def test_studies_take_public_names_alone(room):
    """Assert that what the library and other rooms keep to themselves stays there."""
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    taken = {
        str(file.relative_to(ROOT)): private_imports(file.read_text(), room)
        for file in files
    }
    assert {file: names for file, names in taken.items() if names} == {}


@pytest.mark.parametrize(
    "line",
    [
        "from lyapunov.questions._cause import state_cause",
        "from lyapunov.recurrences import _fused_scan",
        "from lyapunov import _xla",
        "import lyapunov.questions._cause",
        "import lyapunov._xla as xla",
        "import lyapunov\nlyapunov.questions._cause.state_cause",
        "from experiments.bundled.environment import _script",
        "from analysis.speed import _share",
        "def f():\n    from lyapunov.models.held import _x",
    ],
)
def test_a_private_name_is_seen(line):
    """Assert that every way to write such an import is one."""
    assert private_imports(line, "analysis")


@pytest.mark.parametrize(
    "line",
    [
        "from lyapunov.questions import state_cause",
        "from __future__ import annotations",
        "from analysis._cross_cases import cases",
        "from analysis import _peers_cases",
        "from . import _cross_page",
        "import lyapunov.bounds.local",
        "from collections import _count_elements",
    ],
)
def test_a_public_name_is_none(line):
    """Assert that a room's own modules, and other packages', are nobody's business."""
    assert private_imports(line, "analysis") == []


def test_rooms_of_references_say_what_they_hold():
    """Assert that each is a package with a docstring and the modules it names."""
    for place in sorted((ROOT / "oracles").rglob("__init__.py")):
        tree = ast.parse(place.read_text())
        assert ast.get_docstring(tree)
        last: Any = tree.body[-1]
        named = ast.literal_eval(last.value)
        there = {one.stem for one in place.parent.iterdir() if one.name[0] != "_"}
        assert set(named) == there


def test_protocols_can_be_asked_for():
    """Assert that beartype, which checks shapes, can check each of them too."""
    files = [*(ROOT / "lyapunov").rglob("*.py")]
    classes = [
        node
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
        and "Protocol" in {ast.unparse(base) for base in node.bases}
    ]
    assert len(classes) >= 5
    for node in classes:
        marks = {ast.unparse(one) for one in node.decorator_list}
        assert "runtime_checkable" in marks, node.name


def test_axes_of_shapes_have_names():
    """Assert that none is an expression, which is looked up before its parts are known.

    `make test-shapes` would end at the first construction of a class with such a field.
    """
    kinds = {"Float", "Int", "Bool", "Shaped", "Num", "Complex", "UInt"}
    shapes = [
        (file.name, ast.literal_eval(node.slice.elts[1]))
        for file in (ROOT / "lyapunov").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Subscript)
        and ast.unparse(node.value) in kinds
        and isinstance(node.slice, ast.Tuple)
    ]
    assert len(shapes) > 300
    for file, shape in shapes:
        for axis in shape.split():
            plain = axis.lstrip("*#?_") or "_"
            assert plain.isidentifier() or plain.isdigit() or axis == "...", (
                file,
                shape,
            )


OTHERS = ("analysis", "docs", "experiments", "oracles", "proofs", "studies", "tests")
LONG = {"read_pickle", "in_kernel"}
"""Their length is their content: a machine's table of opcodes, and a fused kernel."""


def test_files_and_functions_can_be_read_at_a_sitting():
    """Assert it of lines of files and functions, and of files at the root."""
    for room in (*OTHERS, "lyapunov"):
        for path in (ROOT / room).rglob("*.py"):
            assert len(path.read_text("utf-8").splitlines()) <= 400, path
    root = ROOT / "lyapunov"
    assert len(list(root.glob("*.py"))) <= 8
    found = set()
    for path in root.rglob("*.py"):
        text = path.read_text("utf-8")
        for one in ast.walk(ast.parse(text)):
            if isinstance(one, ast.FunctionDef):
                told = ast.get_docstring(one, clean=False)
                lines = not_none(one.end_lineno) - one.lineno + 1
                if lines - (told.count("\n") + 1 if told else 0) > 80:
                    found.add(one.name)
    assert found == LONG


READ = (
    "checkpoints",
    "exponents",
    "findings",
    "formats",
    "models",
    "report",
    "results",
)
"""Rooms whose docstrings were read as somebody does who has not read the code."""

VERBS = {
    "Add", "Advance", "Ask", "Average", "Bound", "Carry", "Choose", "Compare",
    "Compute", "Count", "Cut", "Describe", "Estimate", "Find", "Flatten", "Follow",
    "Form", "Gather", "Give", "Go", "Hold", "Leave", "List", "Load", "Look", "Make",
    "Measure", "Name", "Open", "Push", "Quantise", "Read", "Refuse", "Repeat",
    "Report", "Round", "Run", "Say", "Select", "Settle", "Show", "Start", "Stop",
    "Sum", "Take", "Tell", "Unite", "Write",
}  # fmt: skip
"""What a first line begins with; a new one is entered here by whoever writes it."""


@pytest.mark.parametrize("room", READ)
def test_first_lines_of_public_docstrings_begin_with_a_verb(room):
    """Assert it of what the room's door offers, and of its classes' public members."""
    public = set(getattr(lyapunov, room).__all__)
    found = {}
    for path in sorted((ROOT / "lyapunov" / room).rglob("*.py")):
        for one in ast.parse(path.read_text("utf-8")).body:
            if getattr(one, "name", None) not in public:
                continue
            members = one.body if isinstance(one, ast.ClassDef) else []
            for node in (one, *members):
                named = isinstance(node, ast.FunctionDef | ast.ClassDef)
                if named and not node.name.startswith("_"):
                    told = ast.get_docstring(node) or "none"
                    found[f"{one.name}.{node.name}"] = told.split()[0]
    assert found
    assert {name: word for name, word in found.items() if word not in VERBS} == {}
