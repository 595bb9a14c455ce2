"""Assert that Ctrl-C ends the command at once, whatever the work is doing."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from lyapunov.command._interrupt import interruptible

from ..helpers import not_none


COMMAND = """
import signal, sys, threading
# a shell in the background may have it ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
from lyapunov.command import _session
def work(source, options, progress):
    import jax, jax.numpy as jnp
    {work}
_session._checked = work
{more}
from lyapunov.command._cli import main
main()
"""

# Unrolled: XLA takes minutes to compile it, and gives no signal a chance to be heard.
COMPILES = """
    def long(x):
        for i in range(3000):
            x = jnp.sort(jnp.sin(x) * (i + 1.5)) @ jnp.cos(x + i)
        return x
    lowered = jax.jit(long).lower(jnp.ones((8, 8)))
    print("compiling", file=sys.stderr, flush=True)
    lowered.compile()
"""
TRACES = """
    print("compiling", file=sys.stderr, flush=True)
    while True:
        jax.make_jaxpr(lambda x: jnp.sin(x) @ x)(jnp.ones((2, 2)))
"""
POOL = """
    from concurrent.futures import ThreadPoolExecutor
    import time
    pool = ThreadPoolExecutor(2)
    pool.submit(time.sleep, 60)
    print("compiling", file=sys.stderr, flush=True)
    pool.submit(time.sleep, 60).result()
"""


def started(work: str, *arguments: str, more: str = "") -> subprocess.Popen:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("JAX_COMPILATION_CACHE")
    }
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            COMMAND.format(
                work=textwrap.indent(textwrap.dedent(work), "    ").lstrip(), more=more
            ),
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"JAX_PLATFORMS": "cpu"},
    )
    for line in not_none(process.stderr):
        if line == "compiling\n":
            return process
    raise AssertionError(process.wait())


@pytest.mark.parametrize("work", [COMPILES, TRACES, POOL])
def test_ctrl_c_answers_within_a_second(work):
    """Assert it while XLA compiles, while JAX traces, and while threads sleep."""
    process = started(work, "model")
    time.sleep(0.3)
    before = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    took = time.monotonic() - before
    assert process.returncode == 130
    assert errors.splitlines() == ["stopping", "interrupted"]
    # a second of its own; on a machine that is shared, as long as threads must wait
    assert took < 1 + os.getloadavg()[0]


def test_a_second_one_does_not_wait_for_the_first():
    """Assert it while what was done before is still being told."""
    slow = "import time; _session.say_error = lambda *_: time.sleep(60)\n"
    slow += (
        "import lyapunov.command._endings as endings; "
        "endings.say_error = _session.say_error"
    )
    process = started(POOL, "model", "other", more=slow)
    process.send_signal(signal.SIGINT)
    assert not_none(process.stderr).readline() == "stopping\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130


def test_what_was_asked_for_with_json_is_a_document():
    process = started(POOL, "model", "--json")
    process.send_signal(signal.SIGINT)
    written, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert '"interrupted"' in written


def test_results_and_errors_come_back():
    """Assert that the thread is not seen, but for its result or its error."""
    assert interruptible(lambda: 3) == 3
    with pytest.raises(KeyError, match="gone"):
        interruptible(lambda: {}["gone"])
    with pytest.raises(KeyboardInterrupt):
        interruptible(lambda: (_ for _ in ()).throw(KeyboardInterrupt))
