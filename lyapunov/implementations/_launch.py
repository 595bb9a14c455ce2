"""How a server was started: what of its command line changes what it computes.

Read in vLLM 0.33.0 (`config/cache.py`, `config/mamba.py`, `config/vllm.py`,
`engine/arg_utils.py`) and SGLang 0.5.23 (`srt/server_args.py`,
`srt/configs/mamba_utils.py`). Nothing here loads JAX.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from .._arguments import shown
from .._errors import UsageError
from ._stacks import NAMES


MOST_RANKS, MOST_TOKENS = 1024, 1024


@dataclasses.dataclass(frozen=True)
class Launch:
    """What a command line says, None or False where it leaves the default."""

    dtype: str | None = None
    """The format of weights and activations."""
    state: str | None = None
    """The format of the cached state."""
    window: str | None = None
    """The format of the convolution's window, and of the state where nothing else
    says."""
    stochastic: bool = False
    """Whether steps round the state stochastically."""
    flashinfer: bool = False
    """Whether FlashInfer steps instead of Triton."""
    eager: bool = False
    """Whether nothing is compiled."""
    ranks: int = 1
    """Devices that share every matrix (tensor parallelism)."""
    ring: int | None = None
    """Tokens that ReplaySSM keeps between two stores of the state."""
    drafts: int = 0
    """Tokens of a draft, which go through with the one before them in one call."""
    triton_prefill: bool = False
    """Whether Triton prefills a Gated DeltaNet, whatever the GPU is."""
    triton_steps: bool = False
    """Whether Triton verifies drafts of one."""
    flags: str = ""
    """As they were written, in order."""

    def told(self, name: str) -> str:
        """The stack with its flags, as users write both."""
        return f"{name} {self.flags}".strip()


def _format(value: str, flag: str) -> str | None:
    if value == "auto":
        return None
    found = NAMES.get(value) or (value if value in NAMES.values() else None)
    if found is None:
        raise UsageError(
            f"{flag} is {shown(value)}", hint=f"one of auto, {', '.join(NAMES)}"
        )
    return found


def _number(least: int, most: int) -> Callable[[str, str], int]:
    def read(value: str, flag: str) -> int:
        if not (value.isdecimal() and least <= int(value[:9]) <= most):
            raise UsageError(
                f"{flag} is {shown(value)}", hint=f"a number from {least} to {most}"
            )
        return int(value)

    return read


def _backend(value: str, flag: str) -> bool:
    if value not in ("triton", "flashinfer"):
        raise UsageError(f"{flag} is {shown(value)}", hint="triton or flashinfer")
    return value == "flashinfer"


def _speculative(value: str, flag: str) -> int:
    """Of vLLM's JSON the number of draft tokens."""
    try:
        said = json.loads(value)
        drafts = said["num_speculative_tokens"]
    except (ValueError, KeyError, TypeError):
        drafts = None
    if not isinstance(drafts, int) or not 1 <= drafts <= MOST_TOKENS:
        raise UsageError(
            f"{flag} is {shown(value)}",
            hint="--speculative-config.num_speculative_tokens 3",
        )
    return drafts


def _verified(value: str, flag: str) -> int:
    """Of SGLang's number, which counts the token in front of a draft as well
    (`--speculative-num-steps` and one more), the tokens of the draft itself."""
    return _number(1, MOST_TOKENS)(value, flag) - 1


def _triton(value: str, flag: str) -> bool:
    """Of the kernels of delta rules Triton's alone."""
    if value != "triton":
        raise UsageError(
            f"of {flag} triton is followed, not {shown(value)}", hint=f"{flag} triton"
        )
    return True


_PARALLEL = ("ranks", _number(1, MOST_RANKS))
_COMMON: Mapping[str, tuple[str, Callable[[str, str], Any] | None]] = {
    "--dtype": ("dtype", _format),
    "--mamba-backend": ("flashinfer", _backend),
    "--enable-mamba-cache-stochastic-rounding": ("stochastic", None),
    "--tensor-parallel-size": _PARALLEL,
}
VLLM: Mapping[str, tuple[str, Callable[[str, str], Any] | None]] = {
    **_COMMON,
    "-tp": _PARALLEL,
    "--mamba-cache-dtype": ("window", _format),
    "--mamba-ssm-cache-dtype": ("state", _format),
    "--enforce-eager": ("eager", None),
    "--use-replayssm": ("replays", None),
    "--replayssm-buffer-len": ("ring", _number(1, MOST_TOKENS)),
    "--speculative-config": ("drafts", _speculative),
    "--speculative-config.num_speculative_tokens": ("drafts", _number(1, MOST_TOKENS)),
    "--gdn-prefill-backend": ("triton_prefill", _triton),
    "VLLM_GDN_DECODE_KERNEL": ("triton_steps", _triton),
}
SGLANG: Mapping[str, tuple[str, Callable[[str, str], Any] | None]] = {
    **_COMMON,
    "--tp-size": _PARALLEL,
    "--tp": _PARALLEL,
    "--mamba-ssm-dtype": ("state", _format),
    "SGLANG_MAMBA_SSM_DTYPE": ("state", _format),
    "SGLANG_MAMBA_CONV_DTYPE": ("window", _format),
    "--speculative-num-draft-tokens": ("drafts", _verified),
    "--linear-attn-prefill-backend": ("triton_prefill", _triton),
}
"""By flag or variable of the environment: a field, and what reads the value; None: a
switch."""

DEFAULT_RING = 16
"""vLLM's --replayssm-buffer-len."""


def launched(
    flags: str,
    known: Mapping[str, tuple[str, Callable[[str, str], Any] | None]],
    stack: str,
) -> Launch:
    """Read the part of a command line that changes what a server computes.

    **Arguments:**

    - `flags`: as typed, such as `--enforce-eager -tp 2`.
    - `known`: `VLLM` or `SGLANG`.

    **Raises:** `UsageError` for a flag that was not read in the stack's sources, for a
    value that it does not take, and for flags that exclude one another.
    """
    try:
        words = shlex.split(flags)
    except ValueError as error:
        raise UsageError(f"{shown(flags)}: {error}", hint="check the quotes") from None
    found: dict[str, Any] = {}
    while words:
        flag, _, value = words.pop(0).partition("=")
        if flag not in known:
            raise UsageError(
                f"{shown(flag)} is no flag of {stack} that is followed here",
                hint="leave out what does not change numbers; of the rest there are "
                f"{', '.join(known)}",
            )
        name, read = known[flag]
        if name in found:
            raise UsageError(f"{flag} is given twice", hint="once")
        if read is None:
            if value:
                raise UsageError(f"{flag} takes no value", hint=flag)
            found[name] = True
            continue
        if not value:
            if not words:
                raise UsageError(f"{flag} needs a value", hint=f"{flag} VALUE")
            value = words.pop(0)
        found[name] = read(value, flag)
    return _agreed(found, flags, stack)


def _agreed(found: dict[str, Any], flags: str, stack: str) -> Launch:
    replays = found.pop("replays", False)
    if replays:
        found.setdefault("ring", DEFAULT_RING)
    elif "ring" in found:
        raise UsageError(
            "--replayssm-buffer-len says how long rings are that there are not",
            hint="--use-replayssm",
        )
    launch = Launch(**found, flags=" ".join(flags.split()))
    if launch.stochastic and launch.state != "fp16":
        flag = "--mamba-ssm-cache-dtype" if stack == "vLLM" else "--mamba-ssm-dtype"
        raise UsageError(
            f"{stack} rounds stochastically to float16 alone, written out",
            hint=f"{flag} float16",
        )
    if launch.ring and launch.drafts:
        raise UsageError(
            "ReplaySSM with drafts is FlashInfer's alone, and not followed",
            hint="leave out one of both",
        )
    if launch.ring and launch.flashinfer and launch.ring > DEFAULT_RING:
        raise UsageError(
            f"FlashInfer's rings hold {DEFAULT_RING} tokens at most, not {launch.ring}",
            hint=f"--replayssm-buffer-len {DEFAULT_RING}",
        )
    return launch
