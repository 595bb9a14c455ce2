"""Which networks are put together as vLLM does, and started how."""

from typing import Any

from ..._errors import UsageError
from ...models import Model
from .._launch import Launch


def refuse_others(model: Model) -> None:
    """Refuse a network that is not put together here as vLLM does.

    **Raises:** `UsageError`.
    """
    config = model.config
    first, *others = config.sublayers
    why = None
    if any(one != first for one in others) or first.kind not in ("mamba1", "mamba2"):
        why = "its sublayers are not all Mamba-1 or all Mamba-2, and alike"
    elif config.norm_centred or first.norm_centred:
        why = "it has LayerNorms"
    elif config.embedding_norm_epsilon is not None or config.norm_offset:
        why = "it has other norms around its layers"
    elif not (config.embedding_multiplier == config.logits_multiplier == 1.0):
        why = "it multiplies its embedding or its logits"
    elif config.logits_soft_cap is not None:
        why = "it caps its logits"
    elif first.kind == "mamba1":
        if first.heads != 1 or first.mixer_norm_epsilon is not None:
            why = "its mixers have heads or norms inside"
    else:
        why = _not_plain(first, model)
    if why is not None:
        raise UsageError(
            "plain Mamba-1 and Mamba-2 models alone are run on vLLM's operators, and "
            f"{why}",
            hint="--measure vllm_emulated follows vLLM's flow for the others",
        )


def _not_plain(sizes: Any, model: Model) -> str | None:
    """Why a Mamba-2 mixer is none of `MambaMixer2` as `Mamba2ForCausalLM` makes it."""
    if sizes.norm_before_gate or sizes.norm_groups != sizes.groups:
        return "its gated norm comes before the gate, or has groups of its own"
    if (
        sizes.row_multipliers
        or sizes.in_multiplier != 1.0
        or sizes.out_multiplier != 1.0
    ):
        return "it multiplies what its mixers read or write"
    if sizes.beside:
        return "its sublayers stand beside one another"
    if sizes.out_bias not in (None, sizes.proj_bias):
        return "in_proj and out_proj do not agree on a bias"
    if sizes.chunk & (sizes.chunk - 1):
        return f"its chunks of {sizes.chunk} tokens are no power of two"
    if model.raw_parameters(0)["D"].size != sizes.heads:
        return "its D has an entry a channel"
    return None


def refuse_launch(launch: Launch) -> None:
    """Refuse a server whose operators are not all called here.

    **Raises:** `UsageError`.
    """
    flashinfer, triton = launch.flashinfer, not launch.flashinfer
    by = "--mamba-backend flashinfer"
    follow = "--measure vllm_emulated follows it"
    for what, given, hint in (
        ("--tensor-parallel-size", launch.ranks > 1, follow),
        (f"{by} and a ring", flashinfer and launch.ring, follow),
        (f"{by} and drafts", flashinfer and launch.drafts, follow),
        (
            "stochastic rounding by Triton, which needs compute capability 10,",
            launch.stochastic and triton,
            f"{by}; or {follow}",
        ),
    ):
        if given:
            raise UsageError(
                f"with {what} vLLM's operators are not run here", hint=hint
            )
