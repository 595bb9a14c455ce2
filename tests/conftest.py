"""Settings that hold for every test: fp64, no excess precision, strict promotion."""

import gc
import os
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

# What one worker, one module or one command's process compiled the others only read:
# the same program for the same machine, found by a hash of all that goes into it. Small
# ones as well, of which there are thousands: 25 ms to compile and 4 to read.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Sets XLA's flags, which must stand before JAX computes.
from lyapunov._xla import compile_sooner  # noqa: I001

if "--xla_backend_optimization_level=0" in os.environ.get("XLA_FLAGS", ""):
    compile_sooner(lightly=True)  # fast tests, see the Makefile

import jax
import numpy as np
import pytest

from lyapunov._errors import UsageError
from lyapunov.implementations.transformers._source import RIGHT, installed

from .helpers import forget_programs, programs_compiled


jax.config.update("jax_enable_x64", True)


def keep_what_is_there():
    """Have the collector pass over what was imported: all of torch and JAX, which it
    went through a thousand times."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish():
    keep_what_is_there()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(20240600209)


@pytest.fixture
def programs():
    """Names of what XLA compiles, or reads from its cache, from here on."""
    with programs_compiled() as found:
        yield found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """Skip what an older transformers cannot run, for the reason that it is refused.

    With a version that computes every family's function, a refusal is a failure.
    """
    try:
        return (yield)
    except UsageError as error:
        version = installed()
        refused = error.message.startswith("transformers ") and "-U" in error.hint
        if not refused or version is None or version >= RIGHT:
            raise
        pytest.skip(error.message)


@pytest.fixture(autouse=True, scope="module")
def compiled_code_is_let_go():
    """Compiled functions of a module's tests are of no use to the next one's.

    Each maps memory, and a process may map only so many pieces of it: after a thousand
    tests the compiler cannot allocate any more.
    """
    yield
    forget_programs()
    keep_what_is_there()


MAPS = Path("/proc/self/maps")
MOST_MAPS = 40_000
"""Of the 65,530 that Linux gives a process by itself."""


@pytest.fixture(autouse=True)
def maps_are_left():
    """In the middle of a module, too, where its tests have compiled thousands."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        forget_programs()
