"""Which parameters a group of weights holds: those of every kind, each in its own."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from lyapunov._errors import UsageError
from lyapunov.arithmetic import Weight
from lyapunov.formats._weight_table import PLAIN_FORMATS, WEIGHT_FORMATS
from lyapunov.sublayers.groups import (
    GROUPS,
    OUTSIDE,
    PARAMETERS,
    chosen_parameters,
    groups_of,
    is_matrix,
    rounded_group,
)
from lyapunov.sublayers.kinds import KINDS

from .every_kind import SIZES


Q_K_V = "q_proj k_proj v_proj o_proj g_proj q_down kv_down"
OF_ATTENTION = {
    "projections": f"{Q_K_V} q_adapter_down q_adapter_up k_adapter_down k_adapter_up "
    "v_adapter_down v_adapter_up",
    "biases": "q_bias k_bias v_bias o_bias g_bias q_down_bias kv_down_bias",
    "norms": "norm norm_bias norm_behind norm_behind_bias q_norm q_norm_bias k_norm "
    "k_norm_bias q_down_norm q_down_norm_bias kv_down_norm kv_down_norm_bias",
    "conv": "conv_weight conv_bias",
}
OF_MLP = {
    "projections": "up gate down up_adapter_down up_adapter_up gate_adapter_down "
    "gate_adapter_up",
    "biases": "up_bias gate_bias down_bias",
}
EXPECTED = {
    "mamba1": {
        "mamba1 mixers projections": "in_proj x_proj dt_proj out_proj",
        "mamba1 mixers biases": "in_proj_bias out_proj_bias",
        "mamba1 mixers recurrence": "A_log dt_bias D",
        "mamba1 mixers conv": "conv_weight conv_bias",
        "mamba1 mixers norms": "norm norm_bias dt_norm dt_norm_bias B_norm B_norm_bias "
        "C_norm C_norm_bias",
    },
    "mamba2": {
        "mamba2 mixers projections": "in_proj out_proj",
        "mamba2 mixers biases": "in_proj_bias out_proj_bias",
        "mamba2 mixers recurrence": "A_log dt_bias D",
        "mamba2 mixers conv": "conv_weight conv_bias",
        "mamba2 mixers norms": "norm norm_bias gate_norm",
    },
    "mamba3": {
        "mamba3 mixers projections": "in_proj out_proj",
        "mamba3 mixers biases": "B_bias C_bias",
        "mamba3 mixers recurrence": "dt_bias D mimo_x mimo_z mimo_o",
        "mamba3 mixers norms": "norm norm_bias gate_norm B_norm B_norm_bias C_norm "
        "C_norm_bias",
    },
    "gated_delta": {
        "gated_delta mixers projections": "q_proj k_proj v_proj z_proj a_proj b_proj "
        "out_proj",
        "gated_delta mixers recurrence": "A_log dt_bias",
        "gated_delta mixers conv": "conv_weight conv_bias",
        "gated_delta mixers norms": "norm gate_norm",
    },
    # f_proj and g_proj are there where f_up and g_up are not
    "kimi_delta": {
        "kimi_delta mixers projections": "q_proj k_proj v_proj f_down f_up g_down g_up "
        "b_proj out_proj",
        "kimi_delta mixers recurrence": "A_log dt_bias",
        "kimi_delta mixers conv": "conv_weight conv_bias",
        "kimi_delta mixers norms": "norm gate_norm",
    },
    "short_conv": {
        "short_conv projections": "in_proj out_proj",
        "short_conv biases": "in_proj_bias out_proj_bias",
        "short_conv conv": "conv_weight conv_bias",
        "short_conv norms": "norm norm_bias",
    },
    "rg_lru": {
        "rg_lru mixers projections": "x_proj y_proj input_gate decay_gate out_proj",
        "rg_lru mixers biases": "x_bias y_bias input_gate_bias decay_gate_bias "
        "out_bias",
        "rg_lru mixers recurrence": "decay_logit",
        "rg_lru mixers conv": "conv_weight conv_bias",
        "rg_lru mixers norms": "norm",
    },
    "rwkv4": {
        "rwkv4 mixers projections": "k_proj v_proj r_proj out_proj",
        "rwkv4 mixers recurrence": "time_decay time_first mix_k mix_v mix_r",
        "rwkv4 mixers norms": "norm norm_bias",
    },
    "mlstm": {
        "mlstm mixers projections": "q_proj k_proj v_proj g_proj i_proj f_proj "
        "out_proj",
        "mlstm mixers biases": "i_bias f_bias",
        "mlstm mixers norms": "norm gate_norm",
    },
    "selective_scan": {"selective_scan mixers recurrence": "A_log dt_bias D"},
    "chunk_scan": {"chunk_scan mixers recurrence": "A_log dt_bias D"},
    "channel_mix": {
        "channel_mix mlp projections": "up r_proj down",
        "channel_mix mlp recurrence": "mix_k mix_r",
        "channel_mix mlp norms": "norm norm_bias",
    },
    "lightning": {
        "lightning mixers projections": "q_proj k_proj v_proj g_proj out_proj",
        "lightning mixers recurrence": "slope query_decay key_decay diagonal_decay",
        "lightning mixers norms": "gate_norm",
    },
    "norm": {"norms": "norm"},
    "attention": {f"attention {key}": names for key, names in OF_ATTENTION.items()},
    "mlp": {
        **{f"mlp {key}": names for key, names in OF_MLP.items()},
        "mlp norms": "norm norm_bias norm_behind norm_behind_bias",
    },
    "experts": {
        "experts projections": "up gate down to_latent from_latent",
        "experts biases": "to_latent_bias from_latent_bias",
        "experts norms": "norm norm_bias",
        "router projections": "router shared_router",
        "router biases": "router_bias",
        "shared_experts projections": "shared_up shared_gate shared_down "
        "shared_up_adapter_down shared_up_adapter_up shared_gate_adapter_down "
        "shared_gate_adapter_up",
        "shared_experts biases": "shared_up_bias shared_gate_bias shared_down_bias",
    },
    "shared": {
        "shared projections": "linear",
        **{f"shared attention {key}": names for key, names in OF_ATTENTION.items()},
        **{f"shared mlp {key}": names for key, names in OF_MLP.items()},
        "shared mlp norms": "mlp_norm mlp_norm_bias",
    },
    OUTSIDE: {
        "embedding_and_head": "embedding head",
        "norms": "embedding_norm embedding_norm_bias",
        "norms final_norm": "norm_f norm_f_bias",
    },
}


def parameters_of(kind):
    """All that a kind's own construction asks for, and those of them that it wraps as
    matrices; every optional one is there."""
    given = {}

    def get(name):
        given.setdefault(name, len(given) + 1.0)
        return jnp.full((2, 2, 2), given[name])

    with jax.enable_x64(True):
        built = SIZES[kind].parameters(get)
        leaves = jax.tree.leaves(built, is_leaf=lambda x: isinstance(x, Weight))
        found = {float(jnp.max(x.matrix)) for x in leaves if isinstance(x, Weight)}
    if kind == "experts":  # stacks of matrices, gathered before they multiply
        found |= {given[name] for name in ("up", "gate", "down")}
    return set(given), {name for name, value in given.items() if value in found}


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_in_exactly_its_groups(kind):
    """Assert it of each kind's own parameters, and that matrices are known as such."""
    names, matrices = parameters_of(kind)
    expected = {
        name: {"all", name, *groups.split()}
        for groups, members in EXPECTED[kind].items()
        for name in members.split()
    }
    assert names == set(expected)
    assert {name: set(groups_of(kind, name)) for name in names} == expected
    assert {name for name in names if is_matrix(kind, name)} == matrices


def test_what_stands_around_the_sublayers_has_groups_too():
    for groups, members in EXPECTED[OUTSIDE].items():
        for name in members.split():
            assert groups_of(OUTSIDE, name) == {"all", name, *groups.split()}


@pytest.mark.parametrize(
    ("kind", "name"),
    [("mamba2", "q_weight"), ("gated_delta2", "in_proj"), (OUTSIDE, "lm_head")],
)
def test_what_is_not_known_raises(kind, name):
    with pytest.raises(UsageError) as caught:
        groups_of(kind, name)
    assert repr(name) in caught.value.message or repr(kind) in caught.value.message
    assert caught.value.hint


def test_each_group_holds_something():
    held = {
        name
        for kind, rows in EXPECTED.items()
        for members in rows.values()
        for parameter in members.split()
        for name in groups_of(kind, parameter)
    }
    assert set(GROUPS) <= held
    mixers = {"mamba1", "mamba2", "mamba3", "gated_delta", "kimi_delta", "short_conv"}
    mixers |= {"rg_lru", "rwkv4", "channel_mix", "lightning", "mlstm"}
    mixers |= {"selective_scan", "chunk_scan"}
    assert held - set(GROUPS) - PARAMETERS == mixers


def test_groups_are_known_or_refused_without_jax():
    """Assert it of a right name, a kind's, a parameter's and a wrong one."""
    program = (
        "import sys\n"
        "from lyapunov._errors import UsageError\n"
        "from lyapunov.sublayers.groups import rounded_group\n"
        "for name in ('all', 'mamba2', 'A_log', 'mimo_x'):\n"
        "    rounded_group(f'bf16:{name}')\n"
        "try:\n"
        "    rounded_group('bf16:A')\n"
        "except UsageError as error:\n"
        "    print(error.hint)\n"
        "print({'jax', 'numpy', 'equinox'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    hint, loaded = done.stdout.splitlines()
    assert hint.startswith("one of all, projections")
    assert loaded == "set()"


def test_the_names_that_need_no_jax_are_those_of_the_kinds():
    of_kinds = {name for one in KINDS.values() for name in one.weight_groups}
    outside = {name for names in EXPECTED[OUTSIDE].values() for name in names.split()}
    assert of_kinds | outside == set(PARAMETERS)


@pytest.mark.parametrize(
    "text",
    [
        "fp32",
        "int3",
        "int4-block128",
        "nf4-row",
        "bf16:",
        "bf16:B",
        "",
        ":all",
        "a:D:D",
    ],
)
def test_unknown_formats_and_groups_are_refused(text):
    with pytest.raises(UsageError) as caught:
        rounded_group(text)
    assert "one of" in caught.value.hint
    listed = GROUPS if text.startswith("bf16") else WEIGHT_FORMATS
    assert all(name in caught.value.hint for name in listed)


MAMBA2 = [("mamba2", name) for name in ("norm", "in_proj", "A_log", "out_proj")]
NETWORK = [
    (OUTSIDE, "embedding"), *MAMBA2, ("experts", "norm"), ("experts", "router"),
    ("experts", "up"), ("mlp", "up"), ("mlp", "up_bias"), *MAMBA2, (OUTSIDE, "head"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bf16:up", "experts.up mlp.up"),
        ("bf16:experts", "experts.norm experts.up"),
        ("bf16:mlp", "mlp.up mlp.up_bias"),
        ("bf16:projections",
         "mamba2.in_proj mamba2.out_proj experts.router experts.up mlp.up"),
        ("bf16:embedding_and_head", "embedding head"),
        # what quantisers round, where nothing is said: no router, embedding, head
        ("fp8_e4m3", "mamba2.in_proj mamba2.out_proj experts.up mlp.up"),
        ("nvfp4:all", "mamba2.in_proj mamba2.out_proj experts.up mlp.up"),
        ("int4:router", "experts.router"),
        ("int8:head", "head"),
        # and of a group the matrices alone
        ("mxfp4:mlp", "mlp.up"),
        ("nf4:experts", "experts.up"),
    ],
)  # fmt: skip
def test_what_is_rounded_and_what_is_kept(text, expected):
    rounded, kept = chosen_parameters(rounded_group(text), NETWORK)
    assert rounded == expected.split()
    assert len(rounded) + len(kept) == len(set(NETWORK))
    assert not set(rounded) & set(kept)


@pytest.mark.parametrize("text", ["bf16:x_proj", "bf16:attention", "fp8_e4m3:q_proj"])
def test_what_this_network_lacks_is_an_error_that_lists_what_it_has(text):
    with pytest.raises(UsageError) as caught:
        chosen_parameters(rounded_group(text), NETWORK)
    assert repr(text.partition(":")[2]) in caught.value.message
    assert caught.value.hint == (
        "it has all, projections, norms, biases, recurrence, mixers, mlp, experts, "
        "router, embedding, head, embedding_and_head, mamba2, norm, in_proj, A_log, "
        "out_proj, up, up_bias"
    )


@pytest.mark.parametrize("group", ["A_log", "norms", "up_bias", "recurrence", "biases"])
def test_vectors_have_no_scales(group):
    with pytest.raises(UsageError, match="holds matrices") as caught:
        chosen_parameters(rounded_group(f"int8:{group}"), NETWORK)
    assert all(name in caught.value.hint for name in PLAIN_FORMATS)
