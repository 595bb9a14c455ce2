"""The flags of serving stacks that do what a report advises.

Names as of 2026, each from the stack itself:
vLLM `--mamba-ssm-cache-dtype` (the state alone), `--mamba-cache-dtype` (with the
convolution's window), `--enable-mamba-cache-stochastic-rounding` (vllm-project/vllm
pull requests 22928, 29978, 39032, 41680, 35753); SGLang `--mamba-ssm-dtype` and
`--enable-mamba-cache-stochastic-rounding` (sgl-project/sglang pull requests 10258,
18444, 26929; Mamba-1 since 34556). mamba_ssm has one `dtype` for the state and the
convolution's window, and its kernel wants the window in the activations' format;
transformers 5 keeps the state in fp32. int8 and int16 under a scale are FlashInfer's
alone: no flag of either server reaches them (vllm-project/vllm pull request 40012 is
open).
"""

from collections.abc import Sequence
from typing import NamedTuple

from lyapunov.results._check import PrecisionReport


class Flag(NamedTuple):
    """One thing to give to one stack."""

    stack: str
    flag: str
    why: str


STOCHASTIC = "--enable-mamba-cache-stochastic-rounding"

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def serving_flags(
    precisions: Sequence[PrecisionReport], state: str | None, weights: str | None
) -> list[dict[str, str]]:
    """What to give to vLLM, SGLang, mamba_ssm and transformers.

    **Arguments:**

    - `precisions`: what was measured; for the reasons.
    - `state`: the format to keep the state in, or None where nothing was found out.
    - `weights`: the format to run in, or None.

    **Returns:** a list of `stack`, `flag`, `why`. A format for which a stack has no
    flag is left out rather than made up.
    """
    flags: list[Flag] = []
    held, _, rounding = (state or "").partition("-")
    # stochastic rounding is served for fp16 alone, scaled states not at all
    if held in _DTYPES and rounding in ("", "stochastic" if held == "fp16" else ""):
        dtype = _DTYPES[held]
        more = f" {STOCHASTIC}" if rounding else ""
        why = _why_state(precisions, state or "")
        flags += [
            Flag("vLLM", f"--mamba-ssm-cache-dtype {dtype}{more}", why),
            Flag("SGLang", f"--mamba-ssm-dtype {dtype}{more}", why),
            Flag(
                "mamba_ssm",
                "none for the state alone",
                "allocate_inference_cache(dtype=) sets the convolution's window too; "
                "by default both have the weights' format",
            ),
        ]
        if state == "fp32":
            flags.append(
                Flag("transformers", "none needed", "its cache keeps the state in fp32")
            )
    form = (weights or "").partition("-")[0]
    if form in _DTYPES:
        dtype, why = _DTYPES[form], f"weights and activations in {form}"
        flags += [
            Flag("vLLM", f"--dtype {dtype}", why),
            Flag("SGLang", f"--dtype {dtype}", why),
            Flag("mamba_ssm", f"from_pretrained(..., dtype=torch.{dtype})", why),
            Flag("transformers", f"from_pretrained(..., dtype=torch.{dtype})", why),
        ]
    return [flag._asdict() for flag in flags]


def _why_state(precisions: Sequence[PrecisionReport], state: str) -> str:
    others = sorted({p.state_precision for p in precisions} - {state, "fp64"})
    if others:
        return f"the state in {state}, not in {' or '.join(others)}"
    return f"the state in {state}, as it was checked"
