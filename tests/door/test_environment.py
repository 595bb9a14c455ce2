"""Assert that a report says where it was made, and stderr what is ours alone."""

import json
import os
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata

import jsonschema
import pytest

from lyapunov.questions._environment import distributions, environment
from lyapunov.report.json import schema

from ..command.conftest import example


def test_versions_are_those_that_are_installed():
    before = set(sys.modules)
    found = environment()
    assert not {"torch", "transformers", "fla"} & (set(sys.modules) - before)
    for name, distribution in distributions().items():
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            version = None
        assert found.get(name) == version
    assert found["command"] is None
    assert {"python", "jax", "jaxlib", "numpy", "device", "platform"} <= set(found)
    made = datetime.fromisoformat(found["date"])
    assert abs((datetime.now(UTC) - made).total_seconds()) < 60
    document = example.example_report(1).to_dict() | {"environment": found}
    jsonschema.validate(document, schema())


def test_what_is_not_installed_is_left_out(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert set(environment()) == {
        *("python", "jax", "device", "platform", "date", "command"),
    }


ALONE = """
import sys
from lyapunov.command import _session
def work(source, options, progress):
    import jax, jax.numpy as jnp, logging, warnings
    jax.jit(lambda x: x * 2)(jnp.ones(3)).block_until_ready()
    logging.getLogger("transformers.modeling_utils").warning("of transformers")
    logging.getLogger("jax._src.xla_bridge").warning("of JAX")
    warnings.warn("of Python")
    sys.path.insert(0, "tests/command")
    from conftest import example
    return example.example_report(1)
_session._checked = work
from lyapunov.command._cli import main
main()
"""


@pytest.mark.parametrize("verbose", [False, True])
def test_lines_of_other_libraries_are_for_verbose(verbose):
    """Assert it of an error that XLA writes itself, past Python's stderr."""
    drop = ("XLA_FLAGS", "TF_CPP_MIN_LOG_LEVEL", "JAX_COMPILATION_CACHE_DIR")
    variables = {k: v for k, v in os.environ.items() if k not in drop}
    variables |= {"XLA_FLAGS": "--xla_dump_to=/dev/null/x", "JAX_PLATFORMS": "cpu"}
    given = ["a model", "--json", *(["-v"] if verbose else [])]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *given],
        capture_output=True,
        text=True,
        env=variables,
        check=True,
    )
    for line in ("dump.cc", "of transformers", "of JAX", "of Python"):
        assert (line in done.stderr) is verbose
    if not verbose:
        assert done.stderr == ""
    command = json.loads(done.stdout)["environment"]["command"]
    assert command == shlex.join(["lyapunov-check", *given])
