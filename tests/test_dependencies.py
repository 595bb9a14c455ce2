"""Assert that what is imported is declared, and what is declared is imported."""

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STUDIES = ("analysis", "experiments", "studies", "proofs", "oracles", "docs")
OURS = {"lyapunov", *STUDIES, "tests"}
RUNTIME = ("gguf", "hub", "report", "symbolic", "torch", "cuda")

MODULES = {
    "import-linter": "importlinter",
    "lm-eval": "lm_eval",
    "pillow": "PIL",
    "python-flint": "flint",
    "pyyaml": "yaml",
    "pytest-benchmark": "pytest_benchmark",
    "pytest-xdist": "xdist",
}
"""Distributions whose module has another name."""

NOT_IMPORTED = {
    "beartype": "jaxtyping calls it in `make test-shapes`",
    "hatchling": "runs in a process of its own",
    "import-linter": "a command",
    "mkdocs-material": "a theme",
    "mkdocstrings": "a plugin",
    "pyright": "a command",
    "pytest-benchmark": "a plugin",
    "pytest-xdist": "a plugin",
    "ruff": "a command",
}
GIVEN = {
    "peft": "whoever hands over a module of PEFT's has it",
    "pandas": "whoever wants a DataFrame has it",
}
BUILT = {"mamba_ssm": "from source, by a line of the documentation"}
TYPES = {"typing_extensions": "read by type checkers, never loaded"}
PEERS = {"chaotax", "clvlib", "jitcode", "lyapax", "lyapynov", "pynamicalsys"}
"""Libraries that `analysis.peers` looks for and says when they are missing."""
OWNERS = {"bitsandbytes", "compressed_tensors", "torchao"}
"""Libraries that made, once, what tests compare with and the repository keeps."""
ON_A_GPU = {
    "fla": "one wheel of flash-linear-attention, whose kernels need a GPU",
    "triton": "comes with torch where there is a GPU",
    "vllm": "is installed where a server runs, which a hook is given",
}


def names(requirements: list[str]) -> set[str]:
    """Distributions, those of our own extras among them."""
    found = set()
    for one in requirements:
        ((name, extras),) = re.findall(r"^([\w.-]+)(?:\[([\w,]+)\])?", one)
        if name == PROJECT["name"]:
            for extra in extras.split(","):
                found |= names(PROJECT["optional-dependencies"][extra])
        else:
            found.add(name)
    return found


CORE = names(PROJECT["dependencies"])
EXTRA = {name: names(given) for name, given in PROJECT["optional-dependencies"].items()}


def modules(distributions: set[str]) -> set[str]:
    return {MODULES.get(name, name).replace("-", "_") for name in distributions}


def imported(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Top-level packages, and whether a function or a `try` is around the import."""
    waiting = [(tree, False)]
    while waiting:
        node, guarded = waiting.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], guarded) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0], guarded
        elif not isinstance(node, ast.expr):  # holds no statement
            guarded |= isinstance(node, ast.FunctionDef | ast.Try)
            guarded |= isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node)
            waiting += [(child, guarded) for child in ast.iter_child_nodes(node)]


@functools.cache
def imports(folder: str) -> dict[str, set[tuple[str, bool]]]:
    """Other people's packages by name: where, and whether guarded."""
    found: dict[str, set[tuple[str, bool]]] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for name, guarded in imported(ast.parse(path.read_text("utf-8"))):
            if name not in sys.stdlib_module_names | OURS:
                where = str(path.relative_to(ROOT))
                found.setdefault(name, set()).add((where, guarded))
    return found


def test_the_library_imports_what_it_declares():
    """Assert the core at any place, and the extras where they may be missing."""
    core, optional = modules(CORE), modules(set().union(*(EXTRA[e] for e in RUNTIME)))
    for name, places in imports("lyapunov").items():
        if name in core:
            continue
        others = set(GIVEN) | set(TYPES) | set(BUILT) | set(ON_A_GPU)
        assert name in optional | others, (name, places)
        assert all(guarded for _, guarded in places), (name, places)


def test_the_library_imports_all_that_it_declares():
    """Assert it of the core and of each extra that it has."""
    found = set(imports("lyapunov"))
    for extra, declared in {"core": CORE, **{e: EXTRA[e] for e in RUNTIME}}.items():
        unused = {d for d in declared if not modules({d}) & found} - set(NOT_IMPORTED)
        assert not unused, (extra, unused)


@pytest.mark.parametrize("folder", [*STUDIES, "tests"])
def test_the_other_folders_import_what_is_declared(folder):
    allowed = modules(CORE | EXTRA["tests"] | EXTRA["docs"] | EXTRA["cuda"])
    allowed |= PEERS | OWNERS | set(ON_A_GPU) | set(BUILT)
    found = imports(folder)
    assert not {name: found[name] for name in set(found) - allowed}


def test_what_only_the_repository_needs_is_used_by_it():
    found = set()
    for folder in sorted(OURS):
        found |= set(imports(folder))
    for extra in ("experiments", "tests", "dev"):
        own = EXTRA[extra] - set(NOT_IMPORTED)
        unused = {
            d for d in own if not modules({d}) & (found | set(imports("lyapunov")))
        }
        assert not unused, (extra, unused)


def test_exceptions_are_still_exceptions():
    """Assert that each is of something that is declared."""
    declared = CORE.union(*EXTRA.values())
    assert set(NOT_IMPORTED) | set(MODULES) | set(GIVEN) <= declared


@pytest.mark.parametrize("extra", ["tests", "docs", "dev"])
def test_tools_are_locked(extra):
    """Assert that what tests and linters say does not change with the day."""
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.M)
    own = names([d for d in PROJECT["optional-dependencies"][extra] if "[" not in d])
    assert own <= set(pinned)
    assert set(pinned) - {"torch", "grimp"} <= EXTRA["dev"]
