"""All statements, in the order of the table."""

from . import (
    delta_channels,
    delta_chunk,
    delta_determinant,
    delta_exponent,
    delta_inverse,
    delta_keys,
    delta_norm,
    deviation,
    input_to_state,
    left_out,
    lora_tying,
    maximal_exponent,
    rounding,
    stack,
    step_jacobian,
)


STATEMENTS = tuple(
    module.STATEMENT
    for module in (
        step_jacobian,
        maximal_exponent,
        deviation,
        left_out,
        stack,
        lora_tying,
        rounding,
        input_to_state,
        delta_norm,
        delta_determinant,
        delta_exponent,
        delta_keys,
        delta_channels,
        delta_inverse,
        delta_chunk,
    )
)
