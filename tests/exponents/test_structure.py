"""Declared structures: what each dispatches to, and that a false one is found out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov import LyapunovError
from lyapunov.exponents import (
    QR,
    AbstractMethod,
    Automatic,
    ByBlocks,
    ClosedForm,
    ParallelInTime,
    System,
    TangentGrowth,
    by_structure,
    check_structure,
    finite_time_exponents,
    lyapunov_spectrum,
    lyapunov_spectrum_of,
)
from lyapunov.recurrences import (
    AbstractRecurrence,
    AbstractScalarRecurrence,
    AbstractTriangularRecurrence,
    DecayAndDrive,
    DiagonalRecurrence,
    GivenJacobians,
    Mamba2Inputs,
    Mamba2Recurrence,
    Mamba3JointRecurrence,
)

from ..recurrences.test_mamba3 import drawn as drawn_mamba3
from .tolerance import tolerance


class TwoLayers(AbstractTriangularRecurrence):
    """A diagonal layer, and a dense one that reads it: one class deep."""

    second: jax.Array

    @property
    def blocks(self):
        return DiagonalRecurrence(), GivenJacobians()

    def parts(self, state):
        return state["first"], state["second"]

    def block_inputs(self, state, inputs):
        read = jnp.tanh(state["first"].sum())
        return inputs, self.second * (1 + 0.1 * read)

    def step(self, state, inputs):
        first, second = state["first"], state["second"]
        coupling = 1 + 0.1 * jnp.tanh(first.sum())
        return {
            "first": jnp.exp(inputs.log_decay) * first + inputs.drive,
            "second": coupling * (self.second @ second),
        }


class Reversed(TwoLayers):
    """Parts that are the state's, and in the wrong order."""

    def parts(self, state):
        return state["second"], state["first"]


class WrongBlock(TwoLayers):
    """A block that is not the Jacobian's."""

    def block_inputs(self, state, inputs):
        return inputs, self.second


class Coupled(TwoLayers):
    """Layers that read each other."""

    def step(self, state, inputs):
        after = super().step(state, inputs)
        return after | {"first": after["first"] + state["second"].sum()}


class OneDecay(AbstractScalarRecurrence):
    """Heads of three coordinates."""

    spoiled: bool = False

    def step(self, state, inputs):
        return jnp.exp(inputs)[:, None] * state

    def log_decay(self, inputs):
        return jnp.repeat(inputs[:, None], 3, axis=1)

    def head_log_decay(self, inputs):
        return inputs - (1e-3 if self.spoiled else 0)


def two_layers(made=TwoLayers, tokens=60):
    """Recurrence, state and inputs."""
    rng = np.random.default_rng(0)
    recurrence = made(jnp.asarray(0.6 * rng.normal(size=(3, 3))))
    state = {"first": jnp.asarray(rng.normal(size=2)),
             "second": jnp.asarray(rng.normal(size=3))}  # fmt: skip
    log_decay = -rng.exponential(size=(tokens, 2))
    drive = rng.normal(size=(tokens, 2))
    return recurrence, state, DecayAndDrive(jnp.asarray(log_decay), jnp.asarray(drive))


def first_token(inputs):
    """The inputs of one token."""
    return jax.tree.map(lambda x: x[0], inputs)


def test_one_exponent_a_head_counts_for_all_its_coordinates():
    """Assert Mamba-2's: heads exponents, their multiplicity, and means of dt A."""
    rng = np.random.default_rng(1)
    heads, head_dim, d_state, tokens = 3, 4, 5, 40
    dt, A = rng.exponential(size=(tokens, heads)), -rng.exponential(size=heads)
    inputs = Mamba2Inputs(
        jnp.asarray(dt),
        jnp.asarray(rng.normal(size=(tokens, heads, head_dim))),
        jnp.asarray(rng.normal(size=(tokens, 1, d_state))),
    )
    state = jnp.zeros((heads, head_dim, d_state))
    found = lyapunov_spectrum(Mamba2Recurrence(jnp.asarray(A)), state, inputs)
    wanted = np.sort(dt.mean(axis=0) * A)[::-1]
    assert found.exponents.shape == (heads,)
    np.testing.assert_allclose(found.exponents, wanted, rtol=0, atol=tolerance(60, 3))
    np.testing.assert_array_equal(found.multiplicity, [head_dim * d_state] * heads)
    np.testing.assert_array_equal(
        found.repeated, np.repeat(found.exponents, head_dim * d_state)
    )
    # nothing of the full state's size a token is computed
    assert found.growth.shape == (tokens, heads)
    with pytest.raises(ValueError, match="k is 4 and the distinct exponents are 3"):
        lyapunov_spectrum(Mamba2Recurrence(jnp.asarray(A)), state, inputs, k=4)


def test_blocks_have_the_exponents_of_the_whole():
    """Assert the union, QR of the whole, and NumPy's eigenvalues of the product."""
    recurrence, state, inputs = two_layers()
    found = lyapunov_spectrum(recurrence, state, inputs)
    assert found.method.startswith("ByBlocks")

    def upper(parts, u):
        """The same step with the part that reads the other in front."""
        after = recurrence.step({"second": parts[0], "first": parts[1]}, u)
        return after["second"], after["first"]

    parts = state["second"], state["first"]
    whole = lyapunov_spectrum(upper, parts, inputs, method=QR()).exponents
    # QR of a random 3 x 3 matrix, its condition number below 1e3
    atol = 1e3 * tolerance(60)
    ordered = np.sort(np.asarray(whole))
    np.testing.assert_allclose(np.sort(found.exponents), ordered, rtol=0, atol=atol)
    # the same without JAX's derivatives
    first, second = np.asarray(state["first"]), np.asarray(recurrence.second)
    product, means = np.eye(3), np.asarray(inputs.log_decay).mean(axis=0)
    frame, total = np.eye(3), np.zeros(3)
    for log_decay, drive in zip(*map(np.asarray, inputs), strict=True):
        J = second * (1 + 0.1 * np.tanh(first.sum()))
        product = J @ product
        frame, triangle = np.linalg.qr(J @ frame)
        total += np.log(np.abs(np.diag(triangle)))
        first = np.exp(log_decay) * first + drive
    wanted = np.sort(np.concatenate([means, total / 60]))
    np.testing.assert_allclose(np.sort(found.exponents), wanted, rtol=0, atol=atol)


def test_each_block_goes_by_its_own_method():
    """Assert k and method, and that a block of a closed form is exact."""
    recurrence, state, inputs = two_layers()
    found = lyapunov_spectrum(recurrence, state, inputs, k=2)
    every = lyapunov_spectrum(recurrence, state, inputs, method=ByBlocks(QR()))
    np.testing.assert_allclose(
        found.exponents, every.exponents[:2], rtol=0, atol=tolerance(100, 3)
    )
    means = np.asarray(inputs.log_decay).mean(axis=0)
    union = np.asarray(lyapunov_spectrum(recurrence, state, inputs).exponents)
    for mean in means:
        assert np.abs(union - mean).min() <= tolerance(60, 3)


@pytest.mark.slow
def test_the_joint_step_of_mamba3_by_blocks():
    """Assert QR's exponents with -inf and 0, each H's once a head."""
    carried, inputs = drawn_mamba3(1)
    joint = Mamba3JointRecurrence()
    check_structure(joint, carried, first_token(inputs))
    found = lyapunov_spectrum(joint, carried, inputs)
    wanted = lyapunov_spectrum(joint, carried, inputs, method=QR()).exponents
    got = np.sort(np.asarray(found.repeated))
    assert got.size == wanted.size > found.exponents.size
    finite = np.isfinite(wanted).sum()
    np.testing.assert_allclose(
        got[-finite:],
        np.sort(wanted)[-finite:],
        rtol=0,
        atol=tolerance(20 * got.size, 3),
    )
    assert np.isneginf(got[:-finite]).all()


@pytest.mark.slow
def test_the_joint_step_of_mamba1_is_what_it_declares():
    """Assert it at a token, and that blocks find -inf for the window."""
    from lyapunov.arithmetic import Weight
    from lyapunov.recurrences import Mamba1JointRecurrence, StateAndWindow

    rng = np.random.default_rng(2)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
    joint = Mamba1JointRecurrence(
        draw(2, 3), draw(2), Weight(draw(5, 2)), Weight(draw(2, 1)), draw(2),
        -jnp.exp(draw(2, 2)),
    )  # fmt: skip
    state, xs = StateAndWindow(draw(2, 2), draw(2, 2)), draw(30, 2)
    check_structure(joint, state, xs[0])
    found = lyapunov_spectrum(joint, state, xs)
    wanted = lyapunov_spectrum(joint, state, xs, method=QR()).exponents
    assert np.isneginf(found.exponents[-4:]).all()
    scale = float(np.abs(wanted[:4]).max())
    np.testing.assert_allclose(
        found.exponents, wanted, rtol=0, atol=tolerance(100, scale)
    )


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (Reversed, "are not the state's 5 in their order"),
        (WrongBlock, "block 1 is"),
        (Coupled, "not block triangular"),
    ],
)
def test_a_false_declaration_is_found_out(made, words):
    """Assert that the true one passes and each false one is named."""
    recurrence, state, inputs = two_layers()
    check_structure(recurrence, state, first_token(inputs))
    with pytest.raises(ValueError, match=words):
        check_structure(made(recurrence.second), state, first_token(inputs))


def test_a_false_decay_of_a_head_is_found_out():
    """Assert that 1e-3 in its logarithm is seen."""
    state, log_decay = jnp.ones((2, 3)), jnp.array([-0.5, -1.0])
    check_structure(OneDecay(), state, log_decay)
    with pytest.raises(ValueError, match="head_log_decay is"):
        check_structure(OneDecay(spoiled=True), state, log_decay)


def test_jacobians_from_elsewhere():
    """Assert float32 matrices and diagonals with signs, against NumPy."""
    rng = np.random.default_rng(3)
    decays = rng.uniform(-1, 1, size=(50, 4)).astype(np.float32)
    wanted = np.sort(np.log(np.abs(decays.astype(np.float64))).mean(axis=0))[::-1]
    by_diagonal = lyapunov_spectrum_of(decays)
    assert by_diagonal.method == "ClosedForm()"
    matrices = np.stack([np.diag(row) for row in decays])
    for found in (by_diagonal, lyapunov_spectrum_of(matrices)):
        np.testing.assert_allclose(
            found.exponents, wanted, rtol=0, atol=tolerance(100, 10)
        )


def test_jacobians_of_a_torch_model():
    """Assert that tensors are taken as they are, to float64."""
    torch = pytest.importorskip("torch")
    matrices = torch.randn(20, 3, 3, generator=torch.Generator().manual_seed(0))
    found = lyapunov_spectrum_of(matrices).exponents
    wanted = lyapunov_spectrum_of(matrices.double().numpy()).exponents
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("shape", "words"), [((5, 3, 2), "shape"), ((4,), "shape"), ((0, 2, 2), "shape")]
)
def test_other_shapes_are_refused(shape, words):
    """Assert that the shape given is in the words."""
    with pytest.raises(ValueError, match=words):
        lyapunov_spectrum_of(np.zeros(shape))


def test_without_x64_it_is_entered():
    """Assert an exponent of which fp32 would make 0: log(1 - 2^-40)."""
    with jax.enable_x64(False):
        found = lyapunov_spectrum_of(np.full((5, 1), 1 - 2.0**-40)).exponents
    # the decay is a number of fp64; log, four sums and a division round
    np.testing.assert_allclose(found, [np.log1p(-(2.0**-40))], rtol=8 * 2.0**-53)


@pytest.mark.parametrize("method", [ClosedForm(), ByBlocks()])
def test_a_method_that_the_structure_does_not_allow_is_refused(method):
    """Assert that the step and what to use are named."""
    with pytest.raises(ValueError, match=r"(?s)GivenJacobians.*use QR"):
        lyapunov_spectrum_of(np.ones((5, 2, 2)), method=method)


def heads(tokens=60):
    """Two heads of three coordinates."""
    log_decay = -np.random.default_rng(5).exponential(size=(tokens, 2))
    return OneDecay(), jnp.ones((2, 3)), jnp.asarray(log_decay)


def rotating(tokens=60):
    """A plain step: nothing is declared."""
    matrix = jnp.asarray(0.5 * np.random.default_rng(6).normal(size=(4, 4)))
    return (lambda x, _: matrix @ x), jnp.ones(4), tokens


@pytest.mark.parametrize(
    ("made", "method", "shared"),
    [
        (heads, ClosedForm(), [3, 3]),
        (heads, Automatic(), [3, 3]),
        (heads, ParallelInTime(), [3, 3]),
        (heads, QR(), [1] * 6),
        (heads, TangentGrowth(), [1]),
        (two_layers, ByBlocks(), [1] * 5),
        (two_layers, Automatic(), [1] * 5),
        (two_layers, ByBlocks(TangentGrowth()), [1, 1]),
        (rotating, Automatic(), [1] * 4),
        (rotating, ParallelInTime(), [1] * 4),
        (rotating, TangentGrowth(), [1]),
    ],
)
def test_multiplicity_says_how_many_there_are(made, method, shared):
    """Assert it is what comes by default, what is followed, and the most."""
    given = made()
    system = System.of(*given[:2])
    assert method.multiplicity(system).tolist() == shared
    assert method.number(system, None) == len(shared)

    def followed(inputs):
        carry = method.start(system, len(shared), jax.random.key(0))
        return method.advance(system, carry, inputs, 60, 60)[1]

    # traced and not run
    inputs = None if made is rotating else given[2]
    assert jax.eval_shape(followed, inputs).shape == (1, len(shared))
    for ask in (lyapunov_spectrum, finite_time_exponents):
        words = f"k is {len(shared) + 1} and "
        with pytest.raises(LyapunovError, match=words) as refusal:
            ask(*given, method=method, k=len(shared) + 1)
        # more are to be had by a method that is named
        if len(shared) < system.state.size:
            assert "use QR()" in refusal.value.hint or "repeated" in refusal.value.hint


def test_the_default_is_a_method_and_names_what_it_chose():
    """Assert it for every structure, alone and as the method of blocks."""
    for made, name in ((heads, "ClosedForm"), (two_layers, "ByBlocks"),
                       (rotating, "QR")):  # fmt: skip
        step, state, _ = made()
        assert Automatic().name(System.of(step, state)).startswith(name)
    found = [lyapunov_spectrum(*heads(), method=m) for m in (None, Automatic())]
    assert found[0].method == found[1].method == "ClosedForm()"
    np.testing.assert_array_equal(found[0].growth, found[1].growth)


def test_a_new_structure_brings_its_method():
    """Assert that a registered method is the default, and the method of a block."""

    class AbstractStill(AbstractRecurrence):
        """A state that stays as it is."""

    class Still(AbstractStill):
        def step(self, state, inputs):
            return state

    class Zeros(AbstractMethod[None]):
        """Exponents of 0."""

        def start(self, system, k, key):
            return None

        def advance(self, system, carry, inputs, n_tokens, width):
            return carry, jnp.zeros((-(-n_tokens // width), system.state.size))

        def notes(self, system, k):
            return ()

    class WithStill(TwoLayers):
        @property
        def blocks(self):
            return DiagonalRecurrence(), Still()

    system = System.of(Still(), jnp.ones(3))
    assert Automatic().name(system) == "QR()"
    by_structure.register(AbstractStill, lambda recurrence, own: Zeros())
    after = lyapunov_spectrum(Still(), jnp.ones(3), 20)
    assert after.method.endswith("Zeros()")
    assert after.exponents.tolist() == [0, 0, 0]
    recurrence, state, inputs = two_layers()
    found = lyapunov_spectrum(WithStill(recurrence.second), state, inputs)
    assert found.exponents[:3].tolist() == [0, 0, 0]
    assert ParallelInTime().chosen(system) == Zeros()
