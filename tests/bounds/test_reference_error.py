"""The fp64 reference's own error, by the bounds' rules with a unit of 2^-53.

T1 takes it to be at most `REFERENCE_SHARE` of each token's norm. Here it is computed:
every operation in fp64, sums in any order, elementary functions within 4 ulp.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov
from lyapunov.arithmetic import BoundedArithmetic, Exact, RoundingModel
from lyapunov.bounds.local import REFERENCE_SHARE, with_operator_norms
from lyapunov.sublayers.mamba1 import mamba1
from oracles.checkpoints.mamba1 import save_transformers
from oracles.networks.mamba1 import NumpyMamba, Sizes, random_weights


UNIT = 2.0**-53
FP64 = RoundingModel.none()._replace(
    unit=UNIT,
    underflow=2.0**-1022,
    accumulator_unit=UNIT,
    exp_relative=4 * UNIT,
    softplus_relative=4 * UNIT,
    silu_relative=4 * UNIT,
    rsqrt_relative=4 * UNIT,
)


@eqx.filter_jit
def own_share(stream, p, start):
    """The largest share of a token's norm that the reference may be off by."""
    model = jax.tree.map(jnp.asarray, FP64)
    at = BoundedArithmetic({}, model, scan_depth=stream.shape[0])
    bounded = mamba1(at, stream, p, start)[0]
    exact = mamba1(Exact(), stream, p, start)[0]
    return jnp.max(bounded.norm / jnp.linalg.norm(exact, axis=-1))


def shares(model, tokens, layers):
    stream = model.embed(np.asarray(tokens))
    found = []
    for layer in range(layers):
        p = with_operator_norms(model.parameters(layer))
        start = model.start(p)
        found.append(float(own_share(stream, p, start)))
        stream = stream + mamba1(Exact(), stream, p, start)[0]
    return found


def test_reference_of_a_small_network_is_within_its_share(rng, tmp_path):
    """Assert it by the rules, for weights three times as large as well."""
    for gain in (1.0, 3.0):
        sizes = Sizes(d_model=16)
        weights = random_weights(rng, sizes, gain)
        folder = save_transformers(tmp_path / str(gain), weights, sizes)
        tokens = rng.integers(0, sizes.vocab, 48)
        found = shares(lyapunov.load(folder), tokens, sizes.layers)
        assert max(found) <= REFERENCE_SHARE, found


def test_reference_is_far_closer_than_its_share_to_wider_arithmetic(rng, tmp_path):
    """Assert the distance from NumPy's own fp64 forward: 2^-40 of a token's norm."""
    sizes = Sizes(d_model=16, layers=1)
    weights = random_weights(rng, sizes)
    folder = save_transformers(tmp_path / "model", weights, sizes)
    tokens = rng.integers(0, sizes.vocab, 48)
    model = lyapunov.load(folder)
    p = model.parameters(0)
    stream = model.embed(tokens)
    ours = np.asarray(mamba1(Exact(), stream, p, model.start(p))[0])
    numpy = NumpyMamba(weights, sizes)
    numpy.steps, numpy.states = [], []
    normed = numpy.norm(np.asarray(stream), numpy.w["backbone.layers.0.norm.weight"])
    theirs = numpy.mixer(normed, 0)
    apart = np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)
    assert apart.max() <= 2.0**-40


@pytest.mark.slow
def test_reference_of_the_bundled_model_is_within_its_share():
    """Assert 2^-31 on bundled text, as `REFERENCE_SHARE` says of it."""
    try:
        model = lyapunov.load()
    except lyapunov.LyapunovError:
        pytest.skip("the bundled model is not here")
    from lyapunov.questions._request import chosen_tokens

    ids = chosen_tokens(model, None).ids
    found = shares(model, ids[0], len(model.sublayers))
    print([round(float(np.log2(share)), 1) for share in found])
    assert max(found) <= 2.0**-31, found


@pytest.mark.slow
@pytest.mark.parametrize("seq", [512, 2048])
def test_reference_of_a_wide_random_layer_is_within_its_share(rng, tmp_path, seq):
    """Assert 2^-24 at the width of 130M parameters."""
    sizes = Sizes(vocab=64, d_model=768, d_state=16, dt_rank=48, layers=1)
    weights = random_weights(rng, sizes)
    folder = save_transformers(tmp_path / "model", weights, sizes)
    tokens = rng.integers(0, sizes.vocab, seq)
    (found,) = shares(lyapunov.load(folder), tokens, 1)
    print(np.log2(found))
    assert found <= REFERENCE_SHARE
