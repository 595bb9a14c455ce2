"""Assert that executions share programs of bounds only where they are bounded alike."""

from lyapunov.bounds.passes import Interpreter
from lyapunov.implementations import executions_for
from lyapunov.implementations._compiled import compiled
from lyapunov.sublayers import NetworkConfig
from lyapunov.sublayers.mamba1 import Mamba1Sizes


def test_what_is_compiled_has_interpreters_of_its_own():
    """A compiler may keep what a store would round, so that nothing is centred there:
    a program of the stores' own execution would claim too much of it."""
    sizes = Mamba1Sizes(8, 16, 4, 4, 2, 1e-5)
    config = NetworkConfig(8, 8, 8, (sizes,), False)
    (own,) = executions_for(config, ["bf16"], architecture="mamba1")
    joined = compiled(own)
    assert Interpreter(own, 8, True) == Interpreter(own, 8, True)
    assert Interpreter(own, 8, True) != Interpreter(joined, 8, True)
    assert Interpreter(own, 8, False) == Interpreter(joined, 8, False)
