"""xLSTM in plain torch operations, as `modeling_xlstm.py` of transformers 5.24 has it.

Token by token (`mlstm_recurrent_step_native`): what multiplies is in the model's format
and what is added up in fp32. A cache is in the model's format, the maximum that states
are held over too, whatever `inference_state_dtype` says; within a call states are in
fp32. Calls of `chunk_size` tokens and more take another way, which is not followed; nor
are the kernels of the package xlstm, which transformers takes where it is installed.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any

from ...formats import FP32, Format
from ...sublayers.mlstm import GATES
from .._execution import Execution
from .._implementation import RefusedError
from .ways import Planned


STORED = (
    "q", "k", "v", "output_logit", *GATES, "log_forget", "q_scaled", "write",
    "state_read", "read_out", "scan_output", "gate_norm_hat", "gate_norm",
    "output_sigmoid", "gated", "out",
)  # fmt: skip


def mlstm_kind(of: Callable[..., Execution], fmt: Format, decode: bool) -> Execution:
    """An mLSTM, whose cache is in the model's format."""
    found = of(STORED, state_precision=(fmt if decode else FP32).name)
    if decode:
        found.sites.update(state=fmt, state_top=fmt)
    return found


def refuse_chunks(
    sublayers: Iterable[Any], network: Any, plan: Iterable[Planned]
) -> None:
    """Refuse a call that goes through the chunkwise kernel, and kernels of a package.

    **Arguments:**

    - `network`: of transformers. `plan`: its calls.

    **Raises:** `RefusedError`.
    """
    chunks = [one.chunk for one in sublayers if one.kind == "mlstm"]
    if not chunks:
        return
    if getattr(sys.modules[type(network).__module__], "external_xlstm", False):
        raise RefusedError(
            "transformers runs xLSTM in the package xlstm, whose kernels no execution"
            " here declares",
            hint="pip uninstall xlstm, or --measure emulated",
        )
    if max(call.ids.shape[1] for call in plan) >= min(chunks):
        raise RefusedError(
            f"transformers runs {min(chunks)} tokens and more of an mLSTM in chunks,"
            " which no execution here declares (and in 16 bit it refuses them itself)",
            hint=f"--length {min(chunks) - 1}, --mode decode, or --measure emulated",
        )
