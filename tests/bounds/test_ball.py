"""T4: never violated while it lasts, as tight as T1 at first, caught mutants."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov
from lyapunov.arithmetic import Bounded
from lyapunov.bounds.ball import Ball
from lyapunov.bounds.local import sublayer_bound, with_operator_norms
from lyapunov.formats import round_to
from lyapunov.implementations import (
    Emulated,
    Reference,
    Transformers,
    mamba_ssm_prefill,
    transformers_prefill,
)
from oracles.checkpoints.hard import SIZES, hard_weights, tokens_for
from oracles.checkpoints.mamba1 import save_transformers
from oracles.kernels import mamba1 as kernel
from oracles.mutants.mamba1 import make

from ..helpers import not_none, of_sublayer, parted
from .estimates import held_out


KINDS = ["plain", "outliers", "dt", "repeated", "stored in bf16"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A function: kind of trouble -> (model, weights, tokens)."""
    made = {}

    def get(kind):
        if kind not in made:
            weights = hard_weights(kind)
            folder = tmp_path_factory.mktemp("ball") / "model"
            save_transformers(folder, weights, SIZES)
            made[kind] = lyapunov.load(str(folder)), weights, tokens_for(kind)[None]
        return made[kind]

    return get


def streams_of(trace, layers):
    """The stream behind each sublayer: what the next one reads, or the head."""
    records = [next(trace) for _ in range(layers + 1)]
    return [np.asarray(r.residual + r.hidden) for r in records[1:]]


def numpy_streams(weights, tokens, precision, **options):
    """mamba_ssm's kernel in NumPy, layer by layer; wrong in the first one if at all."""
    rows = weights["backbone.embeddings.weight"].astype(np.float32)
    before = kernel.cast(rows, precision)[tokens]
    hidden, streams = np.zeros_like(before), []
    for i in range(SIZES.layers):
        held = kernel.held(kernel.layer_weights(weights, i), precision)
        changed = options if i == 0 else {}
        with np.errstate(all="ignore"):  # fp16 may overflow
            stored = make(held, precision, **changed).run(before, hidden)
        before, hidden = stored["residual"], stored["out"]
        streams.append(before.astype(np.float64) + hidden)
    return streams


def balls(model, tokens, execution, **options):
    """The ball to its end, and the reference's stream behind each sublayer."""
    ball = Ball(model, tokens, execution, **options)
    reference = Reference().trace(model, tokens)
    found, there = [], []
    for layer in model.sublayers:
        record = of_sublayer(next(reference))
        found.append(ball.sublayer(layer, record))
        there.append(np.asarray(record.residual + record.hidden + record.output))
    ball.head()
    return ball, [f for f in found if f is not None], there


def distances(streams, there):
    return [np.linalg.norm(a - b, axis=-1) for a, b in zip(streams, there, strict=True)]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_run_leaves_the_ball(checkpoint, kind, precision):
    """Assert it of the emulator, of NumPy's kernel and, some, of transformers."""
    model, weights, tokens = checkpoint(kind)
    execution = mamba_ssm_prefill(precision)
    ball, found, there = balls(model, tokens, execution)
    assert ball.until_layer == len(found)
    runs = [streams_of(Emulated(execution).trace(model, tokens), SIZES.layers)]
    for order in ("sequential", "block_scan"):
        streams = numpy_streams(weights, tokens[0], precision, order=order)
        runs.append([s[None] for s in streams])
    for run in runs:
        for certified, measured in zip(found, distances(run, there), strict=False):
            assert np.all(measured <= certified.by_token)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "repeated"])
def test_transformers_stays_in_its_ball(checkpoint, kind):
    """Assert it of torch on CPU in bf16, whose sites are others."""
    pytest.importorskip("transformers")
    model, _, tokens = checkpoint(kind)
    execution = transformers_prefill("bf16")
    ball, found, there = balls(model, tokens, execution)
    run = streams_of(Transformers(execution).trace(model, tokens), SIZES.layers)
    for certified, measured in zip(found, distances(run, there), strict=False):
        assert np.all(measured <= certified.by_token)
    assert ball.until_layer >= 1


def test_the_first_radius_is_that_of_t1(checkpoint):
    """Assert it at every token, up to the share that stands for fp64's own error."""
    model, _, tokens = checkpoint("plain")
    execution = mamba_ssm_prefill("bf16")
    _, found, _ = balls(model, tokens, execution)
    record = of_sublayer(next(Emulated(execution).trace(model, tokens)))
    held = model.parameters(0, execution)
    t1 = sublayer_bound(
        execution,
        model.sublayers[0].flow,
        record,
        with_operator_norms(held),
        model.parameters(0),
        model.start(held),
    )
    radius = np.sqrt(np.asarray(t1.radius_square))
    output = np.linalg.norm(np.asarray(record.output), axis=-1)
    own = 2.0**-24 * SIZES.d_model**0.5 * output
    assert np.all(found[0].radius >= radius * (1 - 1e-12))
    assert np.all(found[0].radius <= radius * (1 + 1e-6) + own + 1e-30)


def test_the_centre_is_the_execution_and_not_exact_arithmetic(checkpoint):
    """Assert that centring gains: on most tokens the free ball is far larger."""
    model, _, tokens = checkpoint("plain")
    execution = mamba_ssm_prefill("fp16")
    _, centred, there = balls(model, tokens, execution)
    _, free, _ = balls(model, tokens, execution, centred=False)
    run = streams_of(Emulated(execution).trace(model, tokens), SIZES.layers)
    measured = distances(run, there)[0]
    assert np.all(measured <= free[0].by_token)
    assert centred[0].l2 < free[0].l2 / 3
    # a vacuous bound would fail here
    assert centred[0].l2 <= 40 * np.linalg.norm(measured)


@pytest.mark.parametrize(
    "mutation",
    [
        "dt bias dropped",
        "D dropped",
        "gate dropped",
        "B and C swapped",
        "A without exp",
        "conv taps reversed",
        "conv bias dropped",
        "norm weight skipped",
        "state one token late",
        "wrong epsilon",
    ],
)
def test_broken_kernels_leave_the_ball(checkpoint, mutation):
    """Assert it at the sublayer concerned, in bf16."""
    model, weights, tokens = checkpoint("plain")
    _, found, there = balls(model, tokens, mamba_ssm_prefill("bf16"))
    streams = numpy_streams(weights, tokens[0], "bf16", mutation=mutation)
    measured = np.linalg.norm(streams[0] - there[0][0], axis=-1)
    assert np.any(measured > found[0].by_token[0])


def test_a_ball_that_says_nothing_stops_and_says_where(checkpoint):
    """Assert the layer, the tensor, and that nothing is read after the end."""
    model, _, tokens = checkpoint("outliers")
    execution = mamba_ssm_prefill("bf16")
    coarse = dataclasses.replace(
        execution,
        constants=dataclasses.replace(execution.constants, accumulator_unit=0.5),
    )
    ball, found, _ = balls(model, tokens, coarse)
    assert not ball.alive
    assert found == []
    assert ball.until_layer == 0
    assert ball.stopped_by is not None
    assert ball.stopped_by.startswith("layer 0, ")
    assert ball.stopped_by.removeprefix("layer 0, ") in (*execution.sites, "dt A")
    assert ball.sublayer(model.sublayers[1], None) is None
    assert not ball.certified_stable(np.zeros(tokens.shape, int)).any()


# ---- greedy tokens


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory):
    """A network so short that its ball reaches the head."""
    sizes = SIZES._replace(layers=1)
    weights = {
        name: x for name, x in hard_weights("plain").items() if "layers.1." not in name
    }
    folder = tmp_path_factory.mktemp("one") / "model"
    save_transformers(folder, weights, sizes)
    return lyapunov.load(str(folder)), tokens_for("plain")[None]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_certified_tokens_keep_their_leader(one_layer, precision):
    """Assert it of the emulator and of any point of the ball; most are certified."""
    model, tokens = one_layer
    execution = mamba_ssm_prefill(precision)
    ball, _, _ = balls(model, tokens, execution)
    assert ball.alive
    logits = np.asarray(model.logits(tokens[0]))[None]
    leader = logits.argmax(axis=-1)
    stable = ball.certified_stable(leader)
    assert stable.mean() >= (0.5 if precision == "bf16" else 0.7)

    _, head = parted(Emulated(execution).trace(model, tokens))
    run = np.asarray(head.logits(0, SIZES.vocab))
    assert np.all((run.argmax(axis=-1) == leader) | ~stable)

    # the worst point for the second is on the way to it
    normed = not_none(ball._normed)
    rows = np.asarray(model.head(0, SIZES.vocab, execution).matrix)
    second = np.argsort(logits, axis=-1)[..., -2]
    towards = np.sign(rows[second] - rows[leader])
    for share in (-1.0, 0.3, 1.0):
        moved = share * towards * np.asarray(normed.error)
        length = np.linalg.norm(moved, axis=-1, keepdims=True)
        most = np.asarray(normed.norm)[..., None]
        moved *= np.where(length > most, most / np.where(length > 0, length, 1), 1)
        there = (np.asarray(normed.value) + moved) @ rows.T
        stored = np.asarray(
            round_to(jnp.asarray(there), execution.sites["logits"].numbers())
        )
        alone = np.sum(stored == stored.max(axis=-1, keepdims=True), axis=-1) == 1
        assert np.all(((stored.argmax(axis=-1) == leader) & alone) | ~stable)
    # a leader that is none is certified nowhere
    assert not ball.certified_stable(second).any()


@pytest.mark.slow
def test_a_trained_network_is_certified_for_a_layer():
    """Assert it of the bundled model: the first sublayer, no violation."""
    model, tokens = lyapunov.load(), held_out(1, 96)
    for precision in ("bf16", "fp16", "fp32"):
        execution = mamba_ssm_prefill(precision)
        ball, found, there = balls(model, tokens, execution)
        run = streams_of(Emulated(execution).trace(model, tokens), 9)
        for certified, measured in zip(found, distances(run, there), strict=False):
            assert np.all(measured <= certified.by_token)
        assert ball.until_layer >= 1
        assert ball.alive or not_none(ball.stopped_by).startswith(
            f"layer {ball.until_layer}, "
        )


@pytest.mark.parametrize("operation", ["add", "multiply"])
def test_one_operation_keeps_the_l2_of_its_operands(rng, operation):
    """Assert elementwise and L2 bounds of an fp32 operation on points of two balls."""
    execution = mamba_ssm_prefill("bf16")
    at = execution.bounded(8, {}, execution.constants.model(), centred=True)
    shape, d_model = (300, 32), 32
    values = rng.normal(size=(2, *shape)).astype(np.float32).astype(np.float64)
    sizes = 10.0 ** rng.uniform(-9, -4, size=(2, shape[0], 1))
    # the L2 says much more than the elements: each may be as large as all together
    x, y = (
        Bounded(jnp.asarray(v), jnp.broadcast_to(s, shape), jnp.asarray(s[:, 0]))
        for v, s in zip(values, sizes, strict=True)
    )
    result = getattr(at, operation)(x, y, alone=True)
    # where the operands' errors are more than the operation's own
    large = np.max(sizes[..., 0], axis=0) > 1e-5
    elementwise = np.linalg.norm(result.error, axis=-1)
    assert np.all((np.asarray(result.norm) < 0.8 * elementwise)[large])
    compute = np.add if operation == "add" else np.multiply
    for spread in (1, 4, d_model):
        moved = []
        for v, s in zip(values, sizes, strict=True):
            direction = rng.normal(size=shape) * (np.arange(d_model) < spread)
            direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
            moved.append((v + 0.999 * s * direction).astype(np.float32))
            # the cast to fp32 may leave the ball; where it does nothing is claimed
        inside = np.all(
            [
                np.linalg.norm(m - v, axis=-1) <= s[:, 0]
                for m, v, s in zip(moved, values, sizes, strict=True)
            ],
            axis=0,
        )
        apart = np.abs(compute(*moved).astype(np.float64) - np.asarray(result.value))
        assert inside.sum() > 100
        assert np.all((apart <= np.asarray(result.error))[inside])
        limit = np.asarray(result.norm)
        assert np.all((np.linalg.norm(apart, axis=-1) <= limit)[inside])
