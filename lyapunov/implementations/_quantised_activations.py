"""Executions whose activations are quantised in front of products, as W8A8 has them."""

import dataclasses

from .._errors import UsageError
from ..formats import FP64, operand_format_named
from ..formats._operand_table import parse_operand
from ..sublayers import NetworkConfig
from ._execution import Execution


OPERANDS: dict[str, dict[str, tuple[str, ...]]] = {
    "mamba1": {"in_operand": ("in_proj",), "out_operand": ("out_proj",)},
    "mamba2": {"in_operand": ("in_proj",), "out_operand": ("out_proj",)},
    "gated_delta": {
        "in_operand": ("q_proj", "k_proj", "v_proj", "z_proj"),
        "out_operand": ("out_proj",),
    },
    "kimi_delta": {
        "in_operand": ("q_proj", "k_proj", "v_proj"),
        "out_operand": ("out_proj",),
    },
    "attention": {
        "in_operand": ("q_proj", "k_proj", "v_proj", "g_proj", "q_down", "kv_down"),
        "read_operand": ("o_proj",),
    },
    "mlp": {"up_operand": ("up", "gate"), "down_operand": ("down",)},
    "experts": {
        "expert_up_operand": ("up", "gate"),
        "expert_down_operand": ("down",),
        "up_operand": ("shared_up", "shared_gate"),
        "down_operand": ("shared_down",),
    },
}
"""By kind and site the matrices that read codes there. What a kind's other products
read stays as it is: routers, heads, gates of delta rules, x_proj and dt_proj."""


BEHIND_CODES = (
    "; sums of the codes' products are in fp32 accumulators (tensor cores that keep "
    "fewer bits of them are not covered), and so are the products with the scales; "
    "these matrices are held as they are stored"
)
"""What is assumed of products of codes."""


def with_quantised_activations(
    execution: Execution, config: NetworkConfig, name: str
) -> Execution:
    """The same execution with what products read in a format of `OPERAND_FORMATS_TOLD`.

    The matrices behind are held as they are stored: codes times scales of a quantised
    checkpoint, which its kernels do not round again.

    **Raises:** `UsageError` for an unknown format, for autocast, and for a kind of
    sublayer of which it is not declared.
    """
    fmt, (row, _) = operand_format_named(name), parse_operand(name)
    if execution.runs_in.autocast:
        raise UsageError(
            f"activations are not quantised under autocast ({execution.precision})",
            hint=f"--precision {execution.runs_in.format}",
        )
    unknown = sorted({one.kind for one in config.sublayers} - set(OPERANDS))
    if unknown:
        raise UsageError(
            f"nothing is declared of quantised activations in {', '.join(unknown)}",
            hint=f"declared are {', '.join(OPERANDS)}; leave them out for this network",
        )
    told = f"activations in {name}"

    def one(own: Execution) -> Execution:
        if own.kind not in OPERANDS:  # of another network
            return own
        read = OPERANDS[own.kind]
        names = [matrix for of_site in read.values() for matrix in of_site]
        return dataclasses.replace(
            own,
            name=f"{own.name}, {told}",
            sites=own.sites | dict.fromkeys(read, fmt),
            parameters=own.parameters | dict.fromkeys(names, FP64),
            assumptions=(
                *own.assumptions,
                f"what {', '.join(dict.fromkeys(names))} read is quantised to "
                f"{row.meaning}{BEHIND_CODES}",
            ),
        )

    return dataclasses.replace(one(execution), **execution.mapped(one))
