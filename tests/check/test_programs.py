"""What a check compiles: each program once, and nothing of what was left out."""

from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

import lyapunov
from lyapunov.arithmetic._programs import Program
from lyapunov.bounds import adjoint, ball, floor, local, passes
from lyapunov.questions import _rehearsal
from lyapunov.questions._layers import run_layers
from lyapunov.questions._rehearsal import rehearsed
from lyapunov.questions._request import Request
from oracles.checkpoints.mamba1 import save_transformers
from oracles.networks.mamba1 import Sizes, random_weights

from ..helpers import forget_programs, not_none, programs_compiled
from .conftest import SEQ, SIZES


# Single operations outside of programs, compiled for each shape.
OPERATIONS = {"add", "broadcast_in_dim", "convert_element_type"}


@pytest.fixture(scope="module")
def compiled(checkpoint):
    """The programs of a quick check in a process that has compiled nothing before, and
    those that a standard one behind it adds."""
    folder, _, tokens = checkpoint
    forget_programs()
    with programs_compiled() as found:
        for effort in ("quick", "standard"):
            lyapunov.check(
                str(folder), tokens, precisions=["bf16", "fp16"], effort=effort
            )
            found.append(effort)
    place = found.index("quick")
    return found[:place], found[place + 1 : -1]


def test_a_check_has_few_programs(compiled):
    """Assert no more than 30, and one of each kind for all sublayers and formats."""
    compiled = [name for names in compiled for name in names]
    assert len(compiled) <= 30, compiled
    larger = [name for name in compiled if name not in OPERATIONS]
    assert len(set(larger)) == len(larger), compiled
    assert {"run_layer", "run_rounded", "bounded_pass", "exact_pass"} <= set(larger)


def test_an_effort_compiles_nothing_of_what_it_leaves_out(compiled):
    """Assert no bounded pass in quick, no search, reverse pass or ball in standard."""
    quick, standard = map(set, compiled)
    assert {"run_layer", "run_rounded", "exact_pass", "run_sampled"} <= quick
    assert {"bounded_pass", "_operations"} <= standard
    higher = programs_in(floor, adjoint, ball) - {"_logits"}  # probes have one too
    assert {"_floor", "_through_sublayer"} <= higher
    assert not standard & higher
    assert not quick & (higher | (programs_in(local, passes) - {"exact_pass"}))


def programs_in(*modules):
    """Names of the functions that modules compile, each under its own name alone."""
    return {
        name
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, Program) and value.__module__ == module.__name__
    }


def test_more_sublayers_other_precisions_and_texts_compile_nothing(
    checkpoint, compiled, tmp_path, programs
):
    """Assert that one program serves all sublayers of a kind, all formats of a role,
    all weights and all tokens of a length."""
    assert compiled
    sizes = Sizes(layers=2 * SIZES.layers)
    weights = random_weights(np.random.default_rng(13), sizes)
    deeper = save_transformers(tmp_path / "deeper", weights, sizes)
    tokens = np.random.default_rng(14).integers(0, SIZES.vocab, (2, SEQ))
    again = lyapunov.check(str(deeper), tokens, precisions="fp16", seed=5)
    assert len(again.exponents.layers) == sizes.layers
    assert programs == []


def test_the_head_is_compiled_while_the_first_sublayers_run(checkpoint, monkeypatch):
    """Assert that the rehearsal compiles what comes behind the last sublayer, that the
    check compiles none of it again, and that nothing is rehearsed on few cores."""
    folder, _, tokens = checkpoint
    model, request = lyapunov.load(str(folder)), Request.of(effort="quick")
    given = model, tokens, request.executions(model), request
    forget_programs()
    with (
        ThreadPoolExecutor(1) as workers,
        programs_compiled() as found,
        jax.enable_x64(True),
    ):
        monkeypatch.setattr(_rehearsal, "CORES", 10**6)
        assert rehearsed(run_layers, *given, workers) is None
        monkeypatch.setattr(_rehearsal, "CORES", 1)
        not_none(rehearsed(run_layers, *given, workers)).result()
        found.append("then")
        lyapunov.check(model, tokens, effort="quick")
    place = found.index("then")
    head, rest = found[:place], set(found[place + 1 :])
    assert {"run_norm", "_norm_sampled", "run_head", "_added"} <= set(head)
    assert {"run_layer", "run_sampled"} <= rest
    assert not rest & (set(head) - set(OPERATIONS))
