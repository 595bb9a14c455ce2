"""What is shipped, and what importing it costs."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lyapunov


ROOT = Path(__file__).parent.parent
PRIVATE_ROOMS = {"command"}
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
    """Assert that analysis, experiments and proofs would shadow nobody's folders."""
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"lyapunov"}


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
    with pytest.raises(AttributeError, match="lyapunow"):
        _ = lyapunov.lyapunow
