"""In which formats a server keeps state and window, and what devices can share.

Read in vLLM 0.33.0 (`config/cache.py`, `model_executor/models/config.py`,
`mamba_utils.py`) and SGLang 0.5.23 (`srt/configs/mamba_utils.py`).
"""

from .._errors import UsageError
from ..formats import Format, state_format_named
from ..sublayers import NetworkConfig
from ._launch import Launch
from ._stacks import DTYPES, MAMBA, Asked, Stack


def state_format(
    stack: Stack,
    config: NetworkConfig,
    architecture: str,
    form: Format,
    mode: str,
    asked: str | None,
    launch: Launch,
) -> Format:
    """The cache's format: of the option or the flags, or the stack's default."""
    flagged = launch.state
    kimi = any(one.kind == "kimi_delta" for one in config.sublayers)
    if flagged is None and stack.window is None and not kimi:
        flagged = launch.window  # vLLM's covers both
    if (
        flagged is not None
        and launch.stochastic
        and not drafts_to_nearest(stack, launch)
    ):
        flagged += "-stochastic" if mode == "decode" else ""
    if asked is not None and flagged not in (None, asked):
        raise UsageError(
            f"the flags keep the state in {flagged}, not {asked}",
            hint="leave one of both out",
        )
    name = asked or flagged
    if name is None:
        kinds = frozenset(s.kind for s in config.sublayers if s.recurrent)
        looked_at = Asked(architecture, dict(config.asks), kinds, form.name, config)
        name, why = stack.default(looked_at, form.name)
        if name is None:
            raise UsageError(why, hint="--state-precision fp32, bf16 or fp16")
    found = state_format_named(name)
    alone = {s.kind for s in config.sublayers if s.recurrent} & {"mamba1"}
    if alone and stack.window is None and name not in ("fp32", form.name):
        raise UsageError(
            f"{stack.name}'s compiled prefill of a Mamba-1 takes a state in the "
            f"model's format or in fp32, not {name}",
            hint=f"--state-precision fp32 or {form.name}",
        )
    return found


def drafts_to_nearest(stack: Stack, launch: Launch) -> bool:
    """Whether Triton's window of drafts is stored to nearest nevertheless."""
    return bool(launch.drafts) and bool(stack.also_to_nearest)


def window_format(
    stack: Stack, kinds: set[str], form: Format, launch: Launch
) -> Format:
    """The format of the convolution's window."""
    name = launch.window or stack.window or form.name
    window = state_format_named(name)
    mixed = window.is_reduced and form.is_reduced and window != form
    casts = stack.window is not None
    kept = casts and window != form and not kinds <= {"mamba1"}
    if (mixed and not casts) or kept:
        flag = "SGLANG_MAMBA_CONV_DTYPE" if casts else "--mamba-cache-dtype"
        raise UsageError(
            f"what {stack.name} makes of a window in {name} under a model in "
            f"{form.name} was not read",
            hint=f"{flag}={DTYPES[form.name]} behind the stack's name",
        )
    return window


def demand_steps(kinds: set[str], launch: Launch, stack: str) -> None:
    """**Raises:** `UsageError` where a state is to be stored less often than a mixer
    stores it."""
    if "mamba1" in kinds and (launch.drafts or launch.ring):
        # vLLM's `mamba_mixer.py` reads no number of accepted tokens, and
        # `config/vllm.py` refuses ReplaySSM; SGLang's `mamba1.py` asserts no drafts
        raise UsageError(
            f"{stack} steps through a Mamba-1 token by token, with neither drafts nor "
            "ReplaySSM",
            hint="leave that flag out",
        )


def demand_divisible(config: NetworkConfig, ranks: int, stack: str) -> None:
    """**Raises:** `UsageError` where devices cannot share the network's matrices."""
    if ranks == 1:
        return
    for sizes in config.sublayers:
        if sizes.kind not in MAMBA:
            raise UsageError(
                f"of {stack} on several devices mixers are followed, not {sizes.kind}",
                hint="leave the number of devices out",
            )
        heads = sizes.heads if sizes.kind == "mamba2" else sizes.d_inner
        groups = getattr(sizes, "groups", 1)
        shared = sizes.kind == "mamba1" and sizes.heads > 1
        if heads % ranks or (groups % ranks and groups != 1) or shared:
            raise UsageError(
                f"{ranks} devices cannot share {heads} heads in {groups} groups",
                hint="a number that divides both",
            )
