"""What fla's Triton kernels of the delta rule promise, in transformers' networks.

Read in fla-core 0.6.0 (`gated_delta_rule/chunk_fwd.py`, `wy_fast.py`,
`common/chunk_delta_h.py`, `common/chunk_o.py`, `kda/`, `fused_recurrent.py`), which
transformers calls where it can import it: chunks of 64 for a whole text, one fused
kernel for a step. Everything around the recurrence is transformers' torch code.
"""

import dataclasses

from ..._errors import UsageError
from ...arithmetic import Form
from ...formats import FP32, TF32_OPERAND, Format, state_format_named
from ...sublayers.config import NetworkConfig
from .._execution import (
    Depths,
    Execution,
    any_order,
    assume_formats,
    assume_state,
    one_addition,
    parse_precision,
)
from ..mamba_ssm.mamba1 import tensor_core_depth
from ..transformers.networks import (
    TORCH_CUDA,
    TORCH_ON_CUDA,
    transformers_network,
)


DELTA = ("gated_delta", "kimi_delta")

# exp2 is ex2.approx, within 2 ulp, of a product by log2(e) that is rounded; roots and
# divisions are approximate, within 2 ulp each.
KERNEL = dataclasses.replace(
    TORCH_CUDA,
    exp_relative=2.0**-22,
    exp_argument=2.0**-23,
    rsqrt_relative=2.0**-21,
)
# Decays between tiles of Kimi's are products of two.
BY_KEY = dataclasses.replace(KERNEL, exp_relative=2.0**-21, exp_argument=2.0**-22)

# Written in the format of q, k and v, or cast to it in front of a product.
STORED = (
    "q_unit", "k_unit", "QK_decayed", "v_beta", "k_beta", "k_beta_decayed", "inverse",
    "u", "w", "q_decayed", "chunk_state", "k_decayed", "v_new", "v_new_decayed",
)  # fmt: skip
# In fp32 models products read these as TF32: all but u's, and both factors of Kimi's u.
OPERANDS = (
    "q_operand", "k_operand", "QK_decayed", "k_beta_decayed", "inverse_operand", "w",
    "q_decayed", "chunk_state", "k_decayed", "v_new", "v_new_decayed",
)  # fmt: skip
OF_U = ("v_beta", "inverse")


def fla_network(
    config: NetworkConfig,
    architecture: str,
    precision: str,
    mode: str = "prefill",
    state_precision: str | None = None,
) -> Execution:
    """A network of transformers whose delta rules run in fla's kernels, on a GPU.

    **Arguments:**

    - `state_precision`: of the cached state; None is fp32, fla's own. Any other makes
      a whole text go token by token.

    **Raises:** `UsageError` for a network without a delta rule or with another
    recurrence, and as `transformers_network`.
    """
    kinds = {one.kind for one in config.sublayers}
    others = sorted(kinds - {*DELTA, *TORCH_ON_CUDA})
    if others or not kinds & {*DELTA}:
        found = ", ".join(others or sorted(kinds))
        raise UsageError(
            f"fla's kernels of the delta rule do not run {found}",
            hint="--measure emulated, or --measure transformers",
        )
    fmt, _ = parse_precision(precision, "fla")
    base = transformers_network(config, architecture, precision, mode)
    state = state_format_named(state_precision or FP32.name)
    on_gpu = TORCH_CUDA.on_tensor_cores(fmt)
    chunked = mode == "prefill" and state == FP32
    own = {
        kind: dataclasses.replace(one, constants=on_gpu)
        for kind, one in base.kinds.items()
        if kind in TORCH_ON_CUDA
    }
    for kind in DELTA:
        one = base.kinds[kind]
        sites = one.sites | (chunk_sites(kind, fmt) if chunked else {})
        if not chunked:
            sites = sites | {"state": state}
        # a gate by log(1 + exp) is Kimi's here as well, by torch
        softplus = {"softplus_absolute": one.constants.softplus_absolute}
        kernel = KERNEL if kind == "gated_delta" else BY_KEY
        own[kind] = dataclasses.replace(
            one,
            sites=sites,
            state_precision=state.name,
            constants=dataclasses.replace(kernel.on_tensor_cores(fmt), **softplus),
            form=Form(chunked=chunked),
            depths=Depths(
                accumulation=tensor_core_depth
                if chunked and fmt.is_reduced
                else any_order,
                reduction=any_order,
                scan=any_order if chunked else one_addition,
            ),
        )
    return dataclasses.replace(
        base,
        name=f"fla {mode}, {precision}",
        implementation="fla",
        constants=on_gpu,
        state_precision=state.name,
        kinds=own,
        assumptions=_assumptions(base, own, kinds, fmt, state, chunked),
    )


def chunk_sites(kind: str, fmt: Format) -> dict[str, Format]:
    """What the kernels of a whole text store, and what their products read.

    **Arguments:**

    - `kind`: `gated_delta` or `kimi_delta`. `fmt`: of q, k and v.
    """
    sites = {"tile_operand": TF32_OPERAND, "elapsed": FP32}
    if kind == "kimi_delta":
        # keys times decays from and to the start of a tile
        sites["pair_operand"] = TF32_OPERAND
    if fmt.is_reduced:
        return sites | dict.fromkeys(STORED, fmt)
    sites |= {name: FP32 for name in STORED if name not in ("k_beta",)}
    sites |= dict.fromkeys(OPERANDS, TF32_OPERAND)
    if kind == "kimi_delta":
        sites |= dict.fromkeys(OF_U, TF32_OPERAND)
    return sites


def _assumptions(
    base: Execution,
    kinds: dict[str, Execution],
    used: set[str],
    fmt: Format,
    state: Format,
    chunked: bool,
) -> tuple[str, ...]:
    sites = {k: f for kind in used & {*DELTA} for k, f in kinds[kind].sites.items()}
    _, *rest = base.assumptions
    how = "a step is one fused kernel, in fp32 but for what it reads and puts out"
    if chunked:
        how = (
            "chunks of 64 tokens; inverses of tiles of 16 by substitution in fp32, "
            "merged by products of TF32 operands"
        )
        if not fmt.is_reduced:
            how += "; other products in TF32, too, but those that u is made of"
    return (
        assume_formats(sites, base.parameters),
        "the delta rule runs in fla's own Triton kernels (fla-core 0.6.0), no other "
        "backend of it: FlashQLA, FlashKDA, TileLang",
        how,
        *(line for line in rest if "sums in any order" not in line),
        "sums of 16-bit products may be cut at a relative 2^-23; exp2 within 2 ulp",
        assume_state(state),
    )
