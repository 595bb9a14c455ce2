"""RG-LRU and lightning attention in plain torch operations, and norms in the stream.

As `modeling_recurrent_gemma.py` and `modeling_minimax.py` of transformers 5.24 have
them: states of the first are in fp32, those of the second in the model's format.
"""

from collections.abc import Callable, Sequence

from ...arithmetic import Form
from ...formats import Format
from .._execution import Execution
from .mamba1 import STORED_OF_SEQUENCES


LIGHTNING = (
    "q", "k", "v", "q_silu", "k_silu", "v_silu", "head_decay", "state_kept",
    "state_written", "state_read", "scan_output", "gate_norm_hat", "gate_norm",
    "output_gate", "output_gate_sigmoid", "read_gated", "out", "out_scaled",
)  # fmt: skip
# Of a whole text, block by block.
LIGHTNING_BLOCK = (
    "pairs", "pairs_decayed", "read_within", "q_decayed", "read_before", "k_decayed",
    "head_log_decay",
)  # fmt: skip
RG_LRU = (
    "decay_rate", "x", "conv", "input_logit", "input_gate", "decay_logit", "decay_gate",
    "log_decay", "decay", "decay_squared", "decay_squared_rest", "input_scale",
    "gated_input", "drive", "scan_output", "branch", "branch_activated", "gated", "out",
)  # fmt: skip
# Of a step: what convolves is written out in operations.
RG_LRU_STEP = ("conv_product", "conv_sum")


def linear_kinds(
    of: Callable[..., Execution], fmt: Format, written: Sequence[str], *, decode: bool
) -> dict[str, Execution]:
    """What the code of these kinds stores.

    **Arguments:**

    - `of`: makes an execution of a kind of what it stores.
    - `written`: what a `gelu_new` is made of, by the site `activated`.
    """
    more = RG_LRU_STEP if decode else STORED_OF_SEQUENCES
    return {
        "rg_lru": of((*RG_LRU, *(f"branch_{name}" for name in written), *more)),
        "lightning": of(
            (*LIGHTNING, *(("state",) if decode else LIGHTNING_BLOCK)),
            form=Form(chunked=not decode),
            state_precision=fmt.name,
        ),
        "norm": of(("out",)),
    }
