from ._format import (
    BF16 as BF16,
    FORMATS as FORMATS,
    FP8_E4M3 as FP8_E4M3,
    FP8_E5M2 as FP8_E5M2,
    FP16 as FP16,
    FP32 as FP32,
    FP64 as FP64,
    TF32 as TF32,
    TF32_OPERAND as TF32_OPERAND,
    Format as Format,
    FormatNumbers as FormatNumbers,
    format_named as format_named,
    round_to as round_to,
    rounding_error_bound as rounding_error_bound,
    unit_in_first_place as unit_in_first_place,
)
from ._operand import (
    OPERAND_ROUNDINGS as OPERAND_ROUNDINGS,
    OperandFormat as OperandFormat,
    OperandNumbers as OperandNumbers,
    operand_ends as operand_ends,
    operand_error_bound as operand_error_bound,
    operand_format_named as operand_format_named,
    operand_scales as operand_scales,
    operand_slack as operand_slack,
    round_operand as round_operand,
)
from ._operand_table import (
    DYNAMIC as DYNAMIC,
    STATIC as STATIC,
    operand_format_of as operand_format_of,
)
from ._precision import Precision as Precision
from ._state import (
    INTEGER_ROUNDINGS as INTEGER_ROUNDINGS,
    LARGEST_SCALE as LARGEST_SCALE,
    LEAST_ROW as LEAST_ROW,
    SMALLEST_SCALE as SMALLEST_SCALE,
    STATE_FORMATS as STATE_FORMATS,
    StateFormat as StateFormat,
    StateNumbers as StateNumbers,
    integer_ends as integer_ends,
    integer_scales as integer_scales,
    is_held as is_held,
    is_state_numbers as is_state_numbers,
    round_state as round_state,
    round_stochastically as round_stochastically,
    state_error_bound as state_error_bound,
    state_format_named as state_format_named,
    state_scale as state_scale,
)
from ._table import PRECISIONS as PRECISIONS, STATE_PRECISIONS as STATE_PRECISIONS
from ._weight_table import (
    PLAIN_FORMATS as PLAIN_FORMATS,
    WEIGHT_FORMATS as WEIGHT_FORMATS,
    stored_bytes as stored_bytes,
)
from ._weights import (
    E2M1_LARGEST as E2M1_LARGEST,
    NF4 as NF4,
    dequantised as dequantised,
    needs_largest as needs_largest,
    row_period as row_period,
)
