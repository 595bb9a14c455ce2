"""The flags of serving stacks that do what a report advises.

Names as of 2026, each from the stack itself:
vLLM `--mamba-ssm-cache-dtype` (the state alone), `--mamba-cache-dtype` (with the
convolution's window), `--enable-mamba-cache-stochastic-rounding` (vllm-project/vllm
pull requests 22928, 29978, 39032, 41680, 35753); SGLang `--mamba-ssm-dtype` and
`--enable-mamba-cache-stochastic-rounding` (sgl-project/sglang pull requests 10258,
18444, 26929; Mamba-1 since 34556). int8 and int16 under a scale are FlashInfer's
alone: no flag of either server reaches them (vllm-project/vllm pull request 40012 is
open). What to give to an implementation itself, its own `flags` say.
"""

from collections.abc import Sequence

from lyapunov.formats._precision import Precision
from lyapunov.results._check import PrecisionReport

from ._implementation import Flag
from ._registry import IMPLEMENTATIONS


STOCHASTIC = "--enable-mamba-cache-stochastic-rounding"

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def serving_flags(
    precisions: Sequence[PrecisionReport], state: str | None, weights: str | None
) -> list[dict[str, str]]:
    """What to give to vLLM, SGLang and every implementation that takes something.

    **Arguments:**

    - `precisions`: what was measured; for the reasons.
    - `state`: the format to keep the state in, or None where nothing was found out.
    - `weights`: the format to run in, or None.

    **Returns:** a list of `stack`, `flag`, `why`. A format for which a stack has no
    flag is left out rather than made up.
    """
    flags: list[Flag] = []
    held = None if state is None else Precision.named(state)
    # stochastic rounding is served for fp16 alone, scaled states not at all
    if (
        held is not None
        and held.format in DTYPES
        and not held.scaled
        and (held.format == "fp16" or not held.stochastic)
    ):
        dtype = DTYPES[held.format]
        more = f" {STOCHASTIC}" if held.stochastic else ""
        why = _why_state(precisions, str(held))
        flags += [
            Flag("vLLM", f"--mamba-ssm-cache-dtype {dtype}{more}", why),
            Flag("SGLang", f"--mamba-ssm-dtype {dtype}{more}", why),
        ]
        flags += [f for one in IMPLEMENTATIONS.values() for f in one.flags(state, None)]
    form = None if weights is None else Precision.named(weights).format
    if form is not None and form in DTYPES:
        flags += [
            Flag(stack, f"--dtype {DTYPES[form]}", _why_weights(form))
            for stack in ("vLLM", "SGLang")
        ]
        flags += [f for one in IMPLEMENTATIONS.values() for f in one.flags(None, form)]
    return [flag._asdict() for flag in flags]


def of_library(
    stack: str, of_state: tuple[str, str] | None, weights: str | None
) -> list[Flag]:
    """What a library with `from_pretrained` takes.

    **Arguments:**

    - `of_state`: what to give it for the state, and why; or None. `weights`: the format
      to load the model in, or None.
    """
    flags = [] if of_state is None else [Flag(stack, *of_state)]
    if weights is not None:
        loads = f"from_pretrained(..., dtype=torch.{DTYPES[weights]})"
        flags.append(Flag(stack, loads, _why_weights(weights)))
    return flags


def _why_weights(form: str) -> str:
    return f"weights and activations in {form}"


def _why_state(precisions: Sequence[PrecisionReport], state: str) -> str:
    others = sorted({p.state_precision for p in precisions} - {state, "fp64"})
    if others:
        return f"the state in {state}, not in {' or '.join(others)}"
    return f"the state in {state}, as it was checked"
