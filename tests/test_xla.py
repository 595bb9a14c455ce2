"""XLA is told what bounds need before it computes, and bounds are refused where not."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov import _xla
from lyapunov.bounds.passes import Interpreter, numbers_of
from lyapunov.implementations import mamba_ssm_prefill


@functools.cache
def python(code: str, flags: str | None) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    if flags is not None:
        environment["XLA_FLAGS"] = flags
    environment["JAX_PLATFORMS"] = "cpu"
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )


FLAGS = "import os, json, lyapunov; print(json.dumps(os.environ['XLA_FLAGS'].split()))"


def test_an_import_sets_the_flags_behind_what_is_given():
    own = "--xla_force_host_platform_device_count=2"
    assert json.loads(python(FLAGS, None).stdout) == _xla.flags_needed()
    assert json.loads(python(FLAGS, own).stdout) == [own, *_xla.flags_needed()]


def test_flags_are_set_once():
    code = f"import os, lyapunov; os.environ['X'] = os.environ['XLA_FLAGS']; {FLAGS}"
    given = " ".join(_xla.flags_needed())
    assert json.loads(python(code, given).stdout) == given.split()


def test_xla_takes_the_flags():
    code = "import lyapunov, jax; print(jax.numpy.ones(3).sum())"
    done = python(code, None)
    assert done.stdout.strip() == "3.0", done.stderr


SOONER = f"""
from lyapunov import _xla
_xla.compile_sooner()
{FLAGS}
import jax
jax.jit(lambda x: jax.numpy.sum(jax.numpy.exp(x)))(jax.numpy.ones(100))
_xla.compile_sooner()
"""


def test_the_command_has_xla_compile_less_and_what_is_given_stays():
    done = python(SOONER, None)
    assert not done.returncode, done.stderr
    assert json.loads(done.stdout) == [*_xla.flags_needed(), *_xla.SOONER]
    own = "--xla_disable_hlo_passes=algsimp"
    done = python(SOONER, own)
    assert json.loads(done.stdout)[0] == own
    assert "tree_reduction_rewriter" not in done.stdout


@pytest.mark.parametrize(
    ("version", "flag"),
    [("0.10.2", _xla.EMITTERS), ("0.11.2", _xla.OPTION), ("0.12.0", _xla.OPTION)],
)
def test_xla_ends_the_process_at_a_flag_that_it_does_not_know(
    version, flag, monkeypatch
):
    """Assert the flag for the versions that have it alone, and that this one runs."""
    done = python(SOONER.replace("sooner()", "sooner(lightly=True)"), None)
    assert not done.returncode, done.stderr
    monkeypatch.setattr(_xla.metadata, "version", lambda _: version)
    monkeypatch.setattr(_xla, "_has_computed", lambda: False)
    monkeypatch.setenv("XLA_FLAGS", "")
    _xla.compile_sooner(lightly=True)
    assert os.environ["XLA_FLAGS"].split() == [*_xla.SOONER, *_xla.LIGHTLY, flag]


CALLS = (
    "lyapunov.check(None, [1, 2, 3])",
    "lyapunov.audit(None, 'emulated', [1, 2, 3])",
    "next(lyapunov.trace(None, [1]))",
)
LATE = f"""
import jax
jax.numpy.ones(3).sum()
import lyapunov
for call in {CALLS}:
    try:
        eval(call)
    except lyapunov.LyapunovError as error:
        print(call, "|", error, "|", error.hint)
"""


@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_bounded_where_jax_had_computed_before(call):
    done = python(LATE, None)
    said = [line for line in done.stdout.splitlines() if line.startswith(call)]
    assert len(said) == 1, done.stderr
    assert "computed before lyapunov was imported" in said[0]
    for flag in _xla.flags_needed():
        assert flag in said[0]


@pytest.mark.skipif(_xla._version() < _xla.FIRST, reason="this jaxlib has no such flag")
def test_an_unknown_jaxlib_is_searched_for_the_flag(monkeypatch):
    assert _xla._has_flag(_xla.YNNPACK)
    assert not _xla._has_flag("xla_cpu_a_flag_that_no_version_has")
    monkeypatch.setattr(_xla.metadata, "version", lambda _: "0.99.0")
    monkeypatch.setattr(_xla, "_has_flag", lambda _: False)
    assert _xla.flags_needed() == [_xla.EXCESS]
    monkeypatch.setattr(_xla.metadata, "version", lambda _: "0.10.1")
    assert _xla.flags_needed() == [_xla.EXCESS]


def test_a_softmax_over_1024_tokens_is_bounded_as_it_is_written(rng):
    """jaxlib 0.10.2 and 0.11.2 lost the scores' errors here without the flag."""
    seq, heads = 1024, 4
    execution = mamba_ssm_prefill("bf16")
    interpreter = Interpreter(execution, seq, True)
    numbers = numbers_of(execution)
    numbers.sites.update(dict.fromkeys(("q", "k", "scores"), numbers.sites["xz"]))
    q, k = (jnp.asarray(rng.standard_normal((seq, heads, 16))) for _ in range(2))

    def bounded(q, k):
        at = interpreter(*numbers, {})
        product = at.einsum("lhd,shd->hls", at.store("q", q), at.store("k", k))
        scores = at.store("scores", at.multiply(product, at.fixed(0.25)))
        return at.softmax(scores, jnp.tril(jnp.ones((seq, seq)))).error

    with jax.enable_x64(True):
        compiled = np.asarray(jax.jit(bounded)(q, k))
        with jax.disable_jit():
            written = np.asarray(bounded(q[:, :1], k[:, :1]))  # one head will do
    assert written.max() > 1e-5
    # sums of 1024 terms in another order, of numbers at most 1
    assert np.max(np.abs(compiled[:1] - written)) <= 1024 * 2.0**-52


def test_a_product_with_a_sum_behind_it_is_right():
    """https://github.com/jax-ml/jax/issues/39103, wrong without the flag."""
    with jax.enable_x64(True):
        i = jnp.arange(16385.0)
        rows = jnp.stack((i, jnp.zeros_like(i), jnp.zeros_like(i)), axis=1)
        matrix = jnp.eye(3)
        squared = jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))
        assert jnp.array_equal(jax.jit(squared)(rows), i**2)
