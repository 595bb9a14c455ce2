"""Every implementation says what it is, in one place, and before JAX is loaded."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lyapunov._errors import LyapunovError, UsageError
from lyapunov.implementations import (
    IMPLEMENTATIONS,
    AbstractImplementation,
    implementation_named,
)
from lyapunov.implementations._implementation import MODES
from lyapunov.implementations._registry import (
    audited,
    is_recorded,
    measure_names,
    measuring,
    source_names,
)
from lyapunov.implementations._ways import KINDS


ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
each = pytest.mark.parametrize("one", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)

# Whose "transformers" and "mamba_ssm" are layouts of files.
OF_FILES = "checkpoints"


@each
def test_each_is_final_and_says_what_has_no_default(one):
    assert type(one).__bases__ == (AbstractImplementation,)
    assert not type(one).__subclasses__()
    assert IMPLEMENTATIONS[one.name] is implementation_named(one.name) is one
    said = vars(type(one))
    must = AbstractImplementation.__annotations__
    for name in must:
        assert name in said or hasattr(AbstractImplementation, name), name
    assert isinstance(one.measures, bool)
    assert isinstance(one.needs_gpu, bool)
    # every way is had or refused with a reason; one that is not audited has neither
    assert not set(one.ways) & set(one.refused_ways)
    if one.ways:
        assert {*one.ways, *one.refused_ways} == set(KINDS)
    assert all(one.refused_ways.values())
    for mode in MODES:
        kept = one.state_precisions(mode)
        assert kept is None or "fp32" in kept
    for defect in one.defects:
        assert set(defect.ways) <= set(one.ways)


@each
def test_what_each_needs_is_installed_by_its_hint(one):
    """Assert it of the first library: the one that is run."""
    if one.installed_by is None:
        assert one.libraries == {}
        return
    given = shlex.split(one.installed_by)
    extra = re.search(r"\[(\w+)\]", one.installed_by)
    packages = {
        r.split(">=")[0] for r in [*given, *(EXTRAS[extra[1]] if extra else [])]
    }
    assert next(iter(one.libraries.values())) in packages


@each
def test_what_is_not_run_is_refused_with_a_hint(one):
    """Assert it of a mode, a state and a way that there are not."""
    for asked in ({"mode": "train"}, {"state_precision": "fp7"}):
        with pytest.raises(UsageError) as caught:
            one.execution(None, "bf16", **asked)
        assert caught.value.hint
    if one.state_precisions("prefill") == ("fp32",):
        with pytest.raises(UsageError, match="fp32, not bf16") as caught:
            one.execution(None, "bf16", state_precision="bf16")
        assert caught.value.hint
    if not one.measures:
        for refused in (
            lambda: one.execution(None, "bf16"),
            lambda: one.runner(None),
        ):
            with pytest.raises(UsageError) as caught:
                refused()
            assert caught.value.hint
    if not one.ways:
        with pytest.raises(UsageError) as caught:
            audited(one.name)
        assert caught.value.hint


@each
def test_flags_are_a_servers_alone(one):
    """Assert that a server reads a flag and says which it does not."""
    if not one.launch_flags:
        with pytest.raises(UsageError, match="no server"):
            one.launched("--enforce-eager")
        return
    assert "--dtype" in one.launch_flags
    assert type(one.launched("--dtype auto")) is type(one)
    with pytest.raises(UsageError) as caught:
        one.launched("--port 1")
    assert "--dtype" in caught.value.hint


def test_names_that_there_are_not_are_refused():
    """Assert that every door tells the names that it takes."""
    for ask, names in (
        (implementation_named, tuple(IMPLEMENTATIONS)),
        (measuring, measure_names()),
        (audited, source_names()),
    ):
        for name in ("vlm", "Emulated", "emulated ", "n.npy"):
            with pytest.raises(LyapunovError) as caught:
                ask(name)
            for known in names:
                assert known in caught.value.hint
    assert measuring("none") is None
    with pytest.raises(UsageError):
        measuring("dump")
    with pytest.raises(UsageError):
        audited("transformers_cuda")


def test_a_file_is_told_by_its_suffix_alike_everywhere():
    for path in ("a.npz", "folder/B.NPZ", Path("c.npz")):
        assert is_recorded(path)
        assert audited(path) is implementation_named("dump")
    for other in (*source_names(), "dump", "a.npy", "npz"):
        assert not is_recorded(other)


def test_names_are_had_without_jax():
    code = (
        "import sys; from lyapunov.implementations._registry import measure_names, "
        "source_names; import lyapunov.command._cli; print(measure_names()); "
        "print({'jax', 'numpy', 'equinox', 'torch', 'transformers'} & set(sys.modules))"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(measure_names()), "set()"]


def test_no_name_is_compared_elsewhere():
    """Assert that nobody asks who measures: what differs, the implementation says."""
    names, found = set(IMPLEMENTATIONS), []
    for path in (ROOT / "lyapunov").rglob("*.py"):
        room, *inside = path.relative_to(ROOT / "lyapunov").parts
        of_its_own = room == "implementations" and len(inside) > 1
        if room == OF_FILES or (of_its_own and inside[0] in names):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Compare | ast.Tuple | ast.List | ast.Set):
                continue
            parts = ast.walk(node) if isinstance(node, ast.Compare) else node.elts
            texts = {str(n.value) for n in parts if isinstance(n, ast.Constant)}
            listed = texts & names
            alone = isinstance(node, ast.Compare) and listed
            if alone or len(listed) > 1:
                found.append(f"{path.name}:{node.lineno}: {sorted(listed)}")
    assert found == []
