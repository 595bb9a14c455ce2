"""All statements, in the order of the table."""

from . import (
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
    )
)
