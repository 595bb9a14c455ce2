"""torch.compile as a way: what it keeps unrounded is rounding, what it breaks a bug.

The networks are transformers' own, compiled by inductor for the CPU; faults are planted
in their modules, as a compiler's would be. That a compiled network may keep values as
they are is also held against executions that round at some of the sites.
"""

import dataclasses
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov
from lyapunov.arithmetic import Bounded, Rounded
from lyapunov.formats import FP32
from lyapunov.implementations import IMPLEMENTATIONS, Transformers
from lyapunov.implementations._compiled import Versions, compiled, not_compiled
from lyapunov.implementations._trace import SublayerRecord
from lyapunov.implementations.transformers.network_runner import TransformersNetwork
from lyapunov.questions._audit_verdict import Z_LIMIT
from lyapunov.results._audit import BUG, CONSISTENT, NOT_RUN
from lyapunov.sublayers.residual import sublayer
from oracles.checkpoints.configurations import CONFIGURATIONS
from oracles.checkpoints.transformers import make, save

from ..helpers import not_none


SEQ = 6
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A function: family -> a small model of it, and a text."""
    kept = {}

    def one(family):
        if family not in kept:
            settings = next(iter(CONFIGURATIONS[family].values()))
            settings = {**settings, "num_hidden_layers": 1}
            folder = tmp_path_factory.mktemp(family)
            kept[family] = lyapunov.load(save(make(family, **settings), folder))
        vocab = kept[family].config.vocab_size
        return kept[family], np.random.default_rng(3).integers(0, vocab, SEQ)

    return one


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mamba2", "falcon_mamba"])
def test_a_compiled_network_is_rounding(models, family):
    """Assert it with bounds of everything that is seen, which are no empty words."""
    model, tokens = models(family)
    (run,) = lyapunov.audit(model, tokens=tokens, variants="compiled").variants
    assert run.verdict == CONSISTENT, (run.reason, run.first_violation, run.z)
    assert (run.violations, run.tokens, run.unbounded) == (0, SEQ, 0)
    assert run.executions == ["transformers prefill, bf16, compiled"]
    assert not_none(run.z) < Z_LIMIT / 2
    assert len(run.layers) == len(model.sublayers)
    for layer in run.layers:
        # a bound that no run comes near holds nothing; of a whole sublayer every store
        # may push one way, through a softmax twice
        assert 0.2 < not_none(layer.ratio_t0) <= 1, layer
        assert 1e-3 < layer.ratio_t1 <= 1, layer


def mistaken(family):
    """Faults of a compiler: a name, and what it does to the network."""
    if family == "llama":

        def scale(network):
            attention = network.model.layers[0].self_attn
            attention.scaling = attention.scaling * 1.25

        def epsilon(network):
            network.model.layers[0].post_attention_layernorm.variance_epsilon = 0.1

        return {"scale": (scale, 0), "epsilon": (epsilon, 1)}

    def skip(network):
        network.backbone.layers[0].mixer.D.data.mul_(1.5)

    return {"skip": (skip, 0)}


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "fault"),
    [("llama", "scale"), ("llama", "epsilon"), ("mamba2", "skip")],
)
def test_what_a_compiler_breaks_is_a_bug(models, monkeypatch, family, fault):
    """Assert a bug at the sublayer that a planted fault is in, and none before."""
    model, tokens = models(family)
    built = TransformersNetwork.built
    spoil, layer = mistaken(family)[fault]

    def broken(self, model):
        torch, network = built(self, model)
        spoil(network)
        return torch, network

    monkeypatch.setattr(TransformersNetwork, "built", broken)
    (run,) = lyapunov.audit(model, tokens=tokens, variants="compiled").variants
    assert run.verdict == BUG
    assert not_none(run.first_violation).layer == layer
    assert all(one.violations == 0 for one in run.layers if one.layer < layer)


@pytest.mark.slow
def test_any_subset_of_stores_is_covered(models):
    """Assert T1 of the compiled execution over runs that round at some sites alone, its
    stream another version than the one on record; and not of a run that is wrong."""
    model, tokens = models("llama")
    runner = IMPLEMENTATIONS["transformers"]
    eager = runner.execution(model.config, "bf16", architecture="llama")
    execution = compiled(eager)
    records = list(lyapunov.trace(model, tokens, runner=Transformers(eager)))
    draw = np.random.default_rng(7)
    with jax.enable_x64(True):
        versions = Versions(execution)
        versions.read(records[0])
        given = jax.tree.map(lambda x: x[0], versions.read(records[1]))
        read, own = given.residual, execution.of("mlp")
        assert float(jnp.max(read.error)) > 0
        sizes, p = model.config.sublayers[1], model.parameters(1, own)
        numbers = own.site_numbers()
        wide = {site: FP32.numbers() for site in numbers}

        def bound(sites, given):
            at = own.bounded(SEQ, sites, own.constants.model(), centred=True)
            return sublayer(at, sizes.flow, given, p, model.start(p))[1]

        def ratio(bound, sites, incoming):
            output = sublayer(Rounded(sites), sizes.flow, incoming, p, None)[1]
            return float(jnp.max(jnp.abs(output - bound.value) / bound.error))

        found, worst = bound(numbers, given), 0.0
        for _ in range(24):
            kept = {site for site in numbers if draw.random() < 0.5}
            sites = {s: (numbers if s in kept else wide)[s] for s in numbers}
            version = (
                read.value + draw.choice([-1.0, 1.0], read.value.shape) * read.error
            )
            worst = max(worst, ratio(found, sites, given._replace(residual=version)))
        assert 0.02 < worst <= 1
        exact = given._replace(residual=read.value)
        assert ratio(found, numbers, exact) <= 1
        # stores that are declared to keep fp32, and another input, are told
        assert ratio(bound(wide, exact), numbers, exact) > 1
        assert ratio(found, numbers, exact._replace(hidden=-given.hidden)) > 1


def test_versions_of_the_stream_drift_apart():
    """Assert the closed form of the recursion, and one version where all is eager."""

    @dataclasses.dataclass
    class Declared:
        compiled: bool

        def at(self, place):
            return self

        sites = {"residual": lyapunov.formats.BF16}  # noqa: RUF012

    with jax.enable_x64(True):
        stream = jnp.full((1, 2, 3), 8.0)
        nothing = jnp.zeros_like(stream)
        record = SublayerRecord(0, "mlp", stream, nothing, nothing, {}, {})
        declared: Any = Declared
        eager = Versions(declared(False))
        assert eager.read(record) == record.incoming
        own, u = Versions(declared(True)), 2.0**-8
        for k in range(4):
            read = own.read(record).residual
            assert isinstance(read, Bounded)
            expected = 8.0 * ((1 + 2 * u) ** k - 1)
            np.testing.assert_allclose(read.error, expected, rtol=1e-12)


@dataclasses.dataclass(frozen=True)
class Fake:
    """As much of a sublayer as the question looks at."""

    kind: str
    beside: bool = False
    aside: bool = False
    embedded: bool = False
    adds_out: bool = True


@dataclasses.dataclass(frozen=True)
class FakeConfig:
    """And of a network."""

    sublayers: tuple[Fake, ...]
    embedding_multiplier: float = 1.0


def test_what_is_not_followed_says_why():
    """Assert a reason for experts, scaled outputs, neighbours and unrolled scans."""
    config: Any = FakeConfig
    assert not_compiled(config((Fake("attention"), Fake("mlp"))), 4096) is None
    assert not_compiled(config((Fake("mamba1"),)), 8) is None
    for given, words in (
        (config((Fake("mlp"),), 2.0), "several versions"),
        (config((Fake("experts"),)), "experts is not followed"),
        (config((Fake("mlp", beside=True),)), "several versions"),
        (config((Fake("attention", aside=True),)), "several versions"),
        (config((Fake("mlp", adds_out=False),)), "several versions"),
        (config((Fake("mamba1"),) * 8), "--length 16 "),
    ):
        assert words in (not_compiled(given, 64) or "")


@pytest.mark.slow
def test_without_a_compiler_it_is_not_run(models, monkeypatch):
    """Assert the reason in the place of a traceback, and the other ways as they are."""
    from torch._inductor import cpp_builder, exc

    def nothing():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", nothing)
    model, tokens = models("llama")
    report = lyapunov.audit(model, tokens=tokens, variants=["whole", "compiled"])
    whole, other = report.variants
    assert (whole.verdict, other.verdict) == (CONSISTENT, NOT_RUN)
    assert "needs a C++ compiler" in not_none(other.reason)
