"""What single changed weights do to the logits, against autograd and whole networks."""

from dataclasses import dataclass

import jax
import numpy as np
import pytest
from scipy.special import softmax

import lyapunov
from lyapunov.bounds.weight_pulls import drawn
from lyapunov.checkpoints._network import NetworkLayout
from lyapunov.models import Model
from lyapunov.models._rounded_layout import rounded_layout
from lyapunov.models._weight_units import weight_units
from lyapunov.questions._rank_weights import derivatives_of, predicted
from lyapunov.sublayers.groups import OUTSIDE, RoundedGroup
from oracles.checkpoints.configurations import CONFIGURATIONS
from oracles.checkpoints.transformers import make, save

from ..families.quick import QUICK


torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

PROBES, SEED = 3, 5
EVERYTHING = RoundedGroup("fp8_e4m3-unscaled", "all")


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def probes(logits, sequence, slices):
    """g of each probe by its definition, (probes, seq, vocab), from whole logits."""
    p = softmax(logits, axis=-1)
    found = []
    for number in range(PROBES):
        z = np.zeros(logits.shape)
        for rows in slices:
            shape = len(logits), rows.stop - rows.start
            own = np.asarray(drawn(SEED, sequence, rows.start, number, shape))
            z[:, rows.start + int(rows.behind) : rows.stop] = own[:, int(rows.behind) :]
        half = np.sqrt(p) * z
        found.append(half - p * half.sum(axis=-1, keepdims=True))
    return np.stack(found)


def changed(model, group=EVERYTHING):
    return Model(rounded_layout(model.layout, group), model.source)


# ---- torch's autograd


@pytest.fixture
def in_fp64(monkeypatch):
    """transformers computes in fp64 where it says fp32."""
    to, softmaxed = torch.Tensor.to, torch.nn.functional.softmax
    wide = lambda x: torch.float64 if x is torch.float32 else x
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda self, *a, **k: to(
            self, *map(wide, a), **{n: wide(x) for n, x in k.items()}
        ),
    )
    monkeypatch.setattr(
        torch.nn.functional,
        "softmax",
        lambda *a, **k: softmaxed(*a, **{n: wide(x) for n, x in k.items()}),
    )


@pytest.mark.parametrize("name", ["one group", "Codestral's groups"])
@pytest.mark.usefixtures("in_fp64")
def test_derivatives_are_those_of_autograd(name, tmp_path):
    """Assert it of every parameter of a Mamba-2, a tied head's as well, in fp64.

    The sums of either side have below 2^16 terms of one sign or the other, each off by
    a few 2^-53, so that 1e-10 of the sum of magnitudes leaves a factor of 10 or more.
    """
    network = make("mamba2", **CONFIGURATIONS["mamba2"][name])
    model = lyapunov.load(save(network, tmp_path / "model"))
    tokens = np.random.default_rng(1).integers(0, 50, (2, 24))
    other = changed(model)
    found = derivatives_of(model, other, tokens, n_probes=PROBES, seed=SEED)
    network = network.double()
    weights = dict(network.named_parameters())
    compared = set()
    for i, row in enumerate(tokens):
        logits = network(torch.tensor(row)[None], use_cache=False).logits[0]
        slices = list(model.vocabulary_slices())
        for k, g in enumerate(probes(logits.detach().numpy(), i, slices)):
            given = torch.autograd.grad(
                (torch.tensor(g) * logits).sum(),
                list(weights.values()),
                retain_graph=True,
            )
            gradients = dict(zip(weights, given, strict=True))
            for unit in weight_units(model.layout, EVERYTHING):
                ours = sum(found[p][i, k] for p in unit.places if p in found)
                gradient, moved = of_unit(gradients, model, other, unit)
                terms = gradient * moved
                apart = abs(terms.sum() - ours)
                assert apart <= 1e-10 * np.abs(terms).sum(), unit.name
                compared.add(unit.name)
    assert compared == {n.removesuffix(".weight") for n in weights} - (
        {"lm_head"} if model.config.tie_embeddings else set()
    )


def of_unit(gradients, model, other, unit):
    """Its gradient by torch, and W' - W, in the stored shape."""
    (layer, name), *_ = unit.places
    where = next(n for n in gradients if n.removesuffix(".weight") == unit.name)
    if layer == OUTSIDE:
        read = {
            "embedding": lambda l: l.embedding(np.arange(50)),
            "head": lambda l: l.head(0, 50),
            "norm_f": lambda l: l.final_norm(),
        }[name]
        before, after = read(model.layout), read(other.layout)
    else:
        before = model.raw_parameters(layer)[name]
        after = other.raw_parameters(layer)[name]
    gradient = gradients[where].numpy()
    moved = after.astype(np.float64) - before
    return gradient, moved.reshape(gradient.shape)


# ---- every family, by whole networks on either side


@dataclass(frozen=True, eq=False)
class Along(NetworkLayout):
    """W + step (W' - W), by parameter."""

    base: NetworkLayout
    other: NetworkLayout
    steps: dict

    def _at(self, place, before, after):
        if before is None:
            return None
        before = before.astype(np.float64)
        return before + self.steps.get(place, 0.0) * (after - before)

    def layer(self, i):
        after = self.other.layer(i)
        found = self.base.layer(i)
        return {name: self._at((i, name), a, after[name]) for name, a in found.items()}

    def _outside(self, name, read):
        return self._at((OUTSIDE, name), read(self.base), read(self.other))

    def embedding(self, rows):
        return self._outside("embedding", lambda l: l.embedding(rows))

    def head(self, start, stop):
        return self._outside("head", lambda l: l.head(start, stop))

    def final_norm(self):
        return self._outside("norm_f", lambda l: l.final_norm())

    def final_norm_bias(self):
        return self._outside("norm_f_bias", lambda l: l.final_norm_bias())

    def embedding_norm(self):
        return self._outside("embedding_norm", lambda l: l.embedding_norm())

    def embedding_norm_bias(self):
        return self._outside("embedding_norm_bias", lambda l: l.embedding_norm_bias())


@pytest.mark.parametrize(("family", "name"), QUICK)
def test_derivatives_are_those_of_the_network(family, name, tmp_path):
    """Assert that a step along all changes, each by a factor of its own, moves the
    probes as the derivatives say.

    A central difference of step h is off by h^2 times a third derivative. Two steps, h
    and h / 2, tell that from a wrong derivative: the error must fall fourfold, or be
    what fp64 leaves of the difference of two logits over h.
    """
    model = lyapunov.load(
        save(make(family, **CONFIGURATIONS[family][name]), tmp_path / "model")
    )
    tokens = np.random.default_rng(1).integers(0, model.config.vocab_size, (1, 10))
    other = changed(model)
    found = derivatives_of(model, other, tokens, n_probes=PROBES, seed=SEED)
    units = weight_units(model.layout, EVERYTHING)
    assert {place for unit in units for place in unit.places} >= set(found)
    rng = np.random.default_rng(2)
    steps = {place: rng.normal() for place in found}
    g = probes(np.asarray(model.logits(tokens[0])), 0, list(model.vocabulary_slices()))
    ours = sum(steps[place] * found[place][0] for place in found)

    def difference(h):
        ends = [
            np.asarray(
                Model(
                    model.layout.read_by(
                        Along,
                        base=model.layout,
                        other=other.layout,
                        steps={place: sign * h * s for place, s in steps.items()},
                    )
                ).logits(tokens[0])
            )
            for sign in (1, -1)
        ]
        return np.einsum("ktv,tv->k", g, ends[0] - ends[1]) / (2 * h)

    h = 2.0**-8
    coarse, fine = (np.abs(difference(step) - ours) for step in (h, h / 2))
    size = np.abs(ours) + np.sqrt(np.mean(ours**2))
    lost = 2.0**-40 / h * np.abs(g).sum(axis=(1, 2))
    assert np.all(fine <= coarse / 3 + lost), (coarse, fine, lost)
    assert np.all(fine <= 1e-3 * size + lost), (fine, size)


# ---- what the squares mean


def test_mean_square_is_the_second_order_of_the_divergence(tmp_path):
    """Assert it of a tiny change, whose divergence is measured from whole logits.

    Of 400 squares of normal numbers the mean is off by 5 of its standard errors,
    5 * sqrt(2 / 400), or more with probability 1e-6.
    """
    model = lyapunov.load(
        save(make("mamba2", **CONFIGURATIONS["mamba2"]["one group"]), tmp_path / "m")
    )
    tokens = np.random.default_rng(1).integers(0, 50, (1, 24))
    other = changed(model, RoundedGroup("bf16", "in_proj"))
    found = derivatives_of(model, other, tokens, n_probes=400, seed=SEED)
    kl, stderr = predicted(found, list(found), 24)
    before, after = (np.asarray(m.logits(tokens[0])) for m in (model, other))
    p, q = softmax(before, -1), softmax(after, -1)
    measured = np.sum(p * np.log(p / q), axis=-1).mean()
    assert abs(kl / measured - 1) < 5 * (2 / 400) ** 0.5
    # the standard error is that of the mean of squares of normal numbers
    assert stderr == pytest.approx(kl * (2 / 400) ** 0.5, rel=0.3)
