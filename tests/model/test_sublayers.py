"""What a kind says of itself is what its flow does: sites, and what it hands on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov._errors import UsageError
from lyapunov.arithmetic import Exact, Form, Rounded, Weight
from lyapunov.formats import FP32
from lyapunov.sublayers import KINDS, AbstractSublayer
from lyapunov.sublayers.sites import (
    AFTER,
    BEFORE,
    FLOW_ORDER,
    NO_ROW_A_TOKEN,
    _joined,
)

from .every_kind import SIZES
from .full_parameters import VARIANTS, parameters, width_of


TOKENS = 6


FORMS = (Form(), Form(chunked=True), Form(period=2), Form(ranks=4))


class Storing(Exact):
    """Exact arithmetic that notes the name of every store."""

    def __init__(self, found: set[str], apart: bool, form: Form):
        super().__init__()
        self.found, self.apart, self.form = found, apart, form

    def stores(self, site):
        return self.apart

    def store(self, site, x, *, angle=False):
        self.found.add(site)
        return x

    def may_store(self, site, x, *, rescaled=False):
        return self.store(site, x)

    def _in_one_kernel(self, numbers, *, compiled=False):
        return Storing(self.found, self.apart, self.form)

    def _inside_scan(self, key):
        return Storing(self.found, self.apart, self.form)


def stored(sublayer, without) -> set[str]:
    """Names of all stores: of operations apart or fused, by token and in chunks."""
    found: set[str] = set()
    with jax.enable_x64(True):
        p = parameters(sublayer, *without)
        x = jnp.zeros((TOKENS, width_of(sublayer)))
        for apart in (False, True):
            for form in FORMS:
                at = Storing(found, apart, form)
                run = lambda x, at=at: sublayer.flow(at, x, p, p.initial_state())[0]
                jax.eval_shape(run, x)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_sites_are_what_the_flow_stores(kind):
    """Assert equality over every switch: none forgotten, none that nobody stores."""
    found = set().union(*(stored(*one) for one in VARIANTS if one[0].kind == kind))
    assert found == set(KINDS[kind].sites)


def test_which_sites_have_no_row_a_token():
    """Assert the first axis of what every variant records of 11 tokens, which nothing
    else here has 11 of."""
    found = set()
    for sublayer, without in VARIANTS:
        with jax.enable_x64(True):
            p = parameters(sublayer, *without)

            def run(x, sublayer=sublayer, p=p):
                at = Rounded(dict.fromkeys(sublayer.sites, FP32.numbers()))
                sublayer.flow(at, x, p, p.initial_state())
                return at.records

            records = jax.eval_shape(run, jnp.zeros((11, width_of(sublayer))))
        found |= {site for site, array in records.items() if array.shape[0] != 11}
    assert found == set(NO_ROW_A_TOKEN)


def test_the_order_is_each_kinds_own():
    for kind in KINDS.values():
        places = [FLOW_ORDER.index(site) for site in kind.sites]
        assert places == sorted(places), kind
    around = {*BEFORE, *AFTER}
    assert set(FLOW_ORDER) == around.union(*(kind.sites for kind in KINDS.values()))
    assert len(FLOW_ORDER) == len(set(FLOW_ORDER))
    assert [FLOW_ORDER[i] for i in range(len(FLOW_ORDER))] == list(FLOW_ORDER)


def test_orders_that_disagree_and_unknown_sites_are_refused():
    with pytest.raises(UsageError, match="kind 'other' has 'a' in front of"):
        _joined((("one", ("b", "a")), ("other", ("a", "c", "b"))))
    with pytest.raises(UsageError, match="stores 'nowhere'"):
        FLOW_ORDER.index("nowhere")


def calls(sublayer, without, x, y):
    """The state after x y, called once and twice, and after another text and y."""
    with jax.enable_x64(True):
        p = parameters(sublayer, *without)
        run = lambda x, start: sublayer.flow(Exact(), jnp.asarray(x), p, start)
        out, once = run(np.concatenate([x, y]), p.initial_state())
        first = run(x, p.initial_state())[1]
        second, twice = run(y, first)
        other = run(y, run(-2.0 * x, p.initial_state())[1])[1]
        alone = run(y, p.initial_state())[0]
    return out, second, alone, once, twice, other


RECEIVING = [one for one in VARIANTS if one[0].hand_over]


@pytest.mark.parametrize("case", range(len(RECEIVING)))
def test_what_is_handed_on_is_the_state_of_the_flow(case):
    """Assert names, that a cache grows by a row a token, and that nothing else does."""
    sublayer, without = RECEIVING[case]
    with jax.enable_x64(True):
        p = parameters(sublayer, *without)
        x = jnp.zeros((TOKENS, width_of(sublayer)))
        start = p.initial_state()
        run = lambda x, start: sublayer.flow(Exact(), x, p, start)[1]
        after = jax.eval_shape(run, x, start)
    fields = {name for name, value in vars(after).items() if value is not None}
    assert fields == {one.name for one in sublayer.hand_over}
    for one in sublayer.hand_over:
        grown = getattr(after, one.name).shape[0] - getattr(start, one.name).shape[0]
        assert grown == (TOKENS if one.how == "cache" else 0), one
        assert set(one.sites) <= set(sublayer.sites), one
    how = {one.how for one in sublayer.hand_over}
    assert ("state" in how) == sublayer.recurrent
    assert (sublayer.count(TOKENS).states > 0) == sublayer.recurrent


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(RECEIVING)))
def test_what_is_handed_on_is_what_a_later_call_needs(case):
    """Assert two calls equal to one; a window to know nothing of tokens before the last
    call, and a state to know of them."""
    sublayer, without = RECEIVING[case]
    rng = np.random.default_rng(case)
    x, y = rng.normal(size=(2, TOKENS, width_of(sublayer)))
    out, second, alone, once, twice, other = calls(sublayer, without, x, y)
    largest = float(np.abs(out).max())
    # fp64 in another order of some hundred operations
    assert np.abs(np.asarray(out[TOKENS:] - second)).max() < 1e-12 * largest
    assert np.abs(np.asarray(alone - second)).max() > 1e-6 * largest
    for one in sublayer.hand_over:
        array, again, apart = (np.asarray(getattr(s, one.name))
                               for s in (once, twice, other))  # fmt: skip
        scale = np.abs(array).max()
        assert np.abs(array - again).max() <= 1e-12 * scale, one
        if one.how == "window":
            assert np.abs(array - apart).max() == 0.0, one
        elif one.name != "top":  # a maximum, which the last call alone may have
            assert np.abs(array - apart).max() > 1e-9 * scale, one


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_one_number_of_the_flow(kind):
    """Assert that no two places of a flow read one stored parameter, as the two norms
    of a shared block once read one bias."""
    given: dict[str, float] = {}

    def get(name):
        return jnp.full((2, 2, 2), given.setdefault(name, float(len(given))))

    built = SIZES[kind].parameters(get)
    leaves = jax.tree.leaves(built, is_leaf=lambda x: isinstance(x, Weight))
    arrays = [x.matrix if isinstance(x, Weight) else x for x in leaves]
    names = list(given)
    found = [names[int(jnp.max(array))] for array in arrays]
    several = {name for name in found if found.count(name) > 1}
    if kind == "shared":  # which has no norm behind: the flow reads neither
        several -= {"norm_behind", "norm_behind_bias"}
    if kind == "mamba1":  # of heads: a tuple of what is stored as one
        several -= {"x_proj", "dt_proj"}
    if kind == "rg_lru":  # the same
        several -= {"input_gate", "decay_gate"}
    assert not several
    instead = {"f_proj", "g_proj"} if kind == "kimi_delta" else set()
    assert set(found) | instead == set(KINDS[kind].weight_groups)


@pytest.mark.parametrize("kind", KINDS)
def test_exponents_or_a_reason(kind):
    """Assert that what does not recur says why, in the words of reports."""
    assert KINDS[kind].kind == kind
    if KINDS[kind].recurrent:
        return
    reason = SIZES[kind].exponents({}, {})
    assert isinstance(reason, str)
    assert reason.startswith("no exponent: ")


def test_a_kind_has_nothing_to_fall_back_to():
    """Assert that what is not said is an error, by name, and never another's."""
    with pytest.raises(
        TypeError, match="Silent does not say its kind, recurrent, joins_calls"
    ):
        type("Silent", (AbstractSublayer,), {})
    names = "kind recurrent joins_calls sites weight_groups flow"
    said = {name: getattr(KINDS["mlp"], name) for name in names.split()}
    for method in ("parameters", "count", "exponents", "hand_over"):
        assert method in AbstractSublayer.__abstractmethods__
    with pytest.raises(TypeError, match="abstract"):
        type("HalfSaid", (AbstractSublayer,), said)()
