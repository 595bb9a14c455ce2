"""From what a user asked for to executions, one for each precision."""

from collections.abc import Sequence

from ..sublayers.config import NetworkConfig
from ._execution import Execution
from ._implementation import refuse_unknown
from ._registry import measuring


def executions_for(
    config: NetworkConfig,
    precisions: Sequence[str],
    *,
    architecture: str = "mamba1",
    mode: str = "prefill",
    measure: str = "emulated",
    state_precision: str | None = None,
) -> list[Execution]:
    """One execution for each precision, of whatever measures; none for `none`.

    **Arguments:**

    - `config`, `architecture`: of the checkpoint's layout.
    - `precisions`: `bf16`, `fp16`, `fp32`, and `bf16` or `fp16` with `-cast` (A_log and
      D as well) or `-amp` (fp32 weights under autocast).
    - `mode`: `prefill` (the whole sequence at once) or `decode` (from a cache).
    - `measure`: a name of `IMPLEMENTATIONS`, such as `emulated` (mamba_ssm's flow), or
      `none`.
    - `state_precision`: of the cached state; None is the implementation's own.

    **Raises:** `UsageError` with a hint for what there is not.
    """
    implementation = measuring(measure)
    refuse_unknown(mode, state_precision)
    if implementation is None:
        return []
    return [
        implementation.execution(
            config,
            precision,
            architecture=architecture,
            mode=mode,
            state_precision=state_precision,
        )
        for precision in precisions
    ]
