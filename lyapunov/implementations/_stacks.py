"""What serving stacks do with a checkpoint by default, and which of their flags help.

Read in vLLM 0.33.0 (`config/cache.py`, `config/mamba.py`,
`model_executor/models/config.py`, `model_executor/layers/mamba`) and SGLang 0.5.23
(`srt/configs/mamba_utils.py`, `srt/layers/attention/mamba`); names of flags by
vllm-project/vllm pull requests 22928, 29978, 39032, 41680, 35753 and sgl-project/sglang
10258, 18444, 26929, 34556. int8 and int16 under a scale are FlashInfer's alone: no flag
of either server reaches them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lyapunov.formats._precision import Precision
from lyapunov.results._check import PrecisionReport, Served

from ._implementation import Flag


DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
SERVED_STATES = (*DTYPES, "fp16-stochastic")
"""Formats of the state that a flag of some stack leads to; the last is of steps."""
STOCHASTIC = "--enable-mamba-cache-stochastic-rounding --mamba-backend flashinfer"
"""Triton's form asks for compute capability 10; FlashInfer's runs on Hopper."""

MAMBA = frozenset({"mamba1", "mamba2"})
DELTA = frozenset({"gated_delta", "kimi_delta"})
KINDS = MAMBA | DELTA
"""Recurrences that both stacks serve, as far as was read."""
_QWEN = frozenset({"qwen3_next", "qwen3_5", "qwen3_5_moe"})
DELTA_FAMILIES = {
    "vLLM": _QWEN | {"olmo_hybrid", "kimi_linear"},
    "SGLang": _QWEN | {"kimi_linear"},
}
"""Whose delta rules are followed, by stack."""


class Asked(NamedTuple):
    """What a stack looks at in a checkpoint."""

    architecture: str
    config: Mapping[str, Any]
    """`config.json`."""
    kinds: frozenset[str]
    """Of its recurrent sublayers."""
    dtype: str
    """That it is served in, unless a flag says otherwise."""
    network: Any = None
    """Its sizes, for libraries that run networks of some kinds alone; None: of any."""
    gguf: bool = False
    """Whether it lies in llama.cpp's files."""


def asked_of(layout: Any) -> Asked:
    """What stacks look at in a recognised checkpoint."""
    return Asked(
        layout.architecture,
        layout.checkpoint.config,
        frozenset(one.kind for one in layout.config.sublayers if one.recurrent),
        layout.plain_dtype,
        layout.config,
        layout.checkpoint.is_gguf,
    )


class Stack(NamedTuple):
    """One server, in the version that was read."""

    name: str
    version: str
    flag: str
    """Of the state's format."""
    default: Callable[[Asked, str | None], tuple[str | None, str]]
    """A checkpoint and the model's format -> the state's, and what decides it; None
    where that is a format nobody knows."""
    window: str | None
    """The format of the convolution's window; None: the model's."""
    runs: Callable[[Precision, Asked, str | None], bool]
    """Whether the model runs with such a state."""
    notes: Callable[[Asked, str], Iterator[str]]
    also_to_nearest: str = ""
    """Which states are not rounded stochastically beside those behind a prefill."""


def as_served(
    asked: Asked, weights: str | None, precisions: Sequence[PrecisionReport]
) -> list[Served]:
    """Say what each stack does with it by default, and what that cost where it was
    measured; nothing of recurrences that were not read in them.

    **Arguments:**

    - `weights`: the format that it is advised to run in; None: as it is stored, or as
      it was measured.
    """
    form = weights or _stored(asked)
    if form is None:
        # what a user has in mind, then
        names = [Precision.named(one.precision).format for one in precisions]
        form = next((name for name in names if name in ("bf16", "fp16")), None)
    if not asked.kinds or not asked.kinds <= KINDS or form not in DTYPES:
        return []
    found = []
    for stack in STACKS:
        state, why = stack.default(asked, form)
        notes = list(stack.notes(asked, form))
        if state == "fp16":
            notes.append("a state beyond 65504 becomes infinite")
        followed = _followed_by(stack) if _follows(stack, asked, form) else ()
        run = _measured(precisions, form, state, followed)
        output = run.output if run else None
        ask = None
        if run is None and state is not None:
            how = f"--state-precision {state}"
            how = f"--measure {followed[-1]}" if followed else how
            ask = f"--mode decode --precision {form} {how}"
        found.append(
            Served(
                stack=stack.name,
                version=stack.version,
                precision=form,
                state=state,
                window=stack.window or form,
                why=why,
                kl_mean=output and output.kl_mean,
                argmax_flips=output and output.argmax_flips,
                argmax_total=output and output.argmax_total,
                ask=ask,
                notes=notes,
            )
        )
    return found


def state_flags(
    held: Precision, why: str, asked: Asked | None, weights: str | None
) -> Iterator[Flag]:
    """What to give each stack so that it keeps the state so; nothing where no flag of
    it does.

    **Arguments:**

    - `why`: the reason for the format.
    - `asked`: None where nothing is known of the checkpoint: no default is, then.
    """
    form = weights or (_stored(asked) if asked else None)
    for stack in STACKS:
        if not _reaches(stack, held, asked, form):
            continue
        if asked is not None:
            state, decides = stack.default(asked, form)
            if state == str(held):
                yield Flag(stack.name, "none needed", f"{why}: {decides}")
                continue
        more, reason = "", why
        if held.stochastic:
            more = f" {STOCHASTIC}"
            reason = (
                f"{why}; below compute capability 10 FlashInfer alone rounds so, and "
                "the state behind a prefill is rounded to nearest"
                f"{stack.also_to_nearest}"
            )
        yield Flag(stack.name, f"{stack.flag} {DTYPES[held.format]}{more}", reason)


def served_somewhere(held: Precision) -> bool:
    """Whether a flag of any stack leads to such a state: stochastic rounding is served
    for fp16 alone, scaled states not at all."""
    plain = held.format in DTYPES and not held.scaled
    return plain and (held.format == "fp16" or not held.stochastic)


def _reaches(
    stack: Stack, held: Precision, asked: Asked | None, form: str | None
) -> bool:
    """Whether a flag of the stack leads to such a state, and the model runs with it."""
    if not served_somewhere(held):
        return False
    if asked is None:
        return True
    if not asked.kinds or not asked.kinds <= KINDS:
        return False
    if held.stochastic and not asked.kinds <= MAMBA:
        return False
    return stack.runs(held, asked, form)


def _follows(stack: Stack, asked: Asked, form: str) -> bool:
    """Whether what it does with a checkpoint by default is emulated."""
    if asked.kinds <= MAMBA:
        return True
    known = asked.architecture in DELTA_FAMILIES[stack.name]
    # a window in another format was not read, nor is a Gated DeltaNet served in fp32
    served = stack.window in (None, form) and (
        form != "fp32" or asked.kinds == {"kimi_delta"}
    )
    return known and asked.kinds <= DELTA and served


def _vllm_runs(held: Precision, asked: Asked, form: str | None) -> bool:
    if "kimi_delta" in asked.kinds:
        # the layer of Kimi Linear is handed no format of the state
        few = ("fp32",) if asked.architecture == "kimi_linear" else ("fp32", "bf16")
        return held.format in few
    # its compiled prefill of Mamba-1 takes the activations' format or fp32
    return "mamba1" not in asked.kinds or held.format in ("fp32", form)


def _stored(asked: Asked) -> str | None:
    """The format that a file is served in by itself: what a stack makes of one in fp32
    was not read."""
    return None if asked.dtype == "fp32" else asked.dtype


def _vllm_state(asked: Asked, form: str | None) -> tuple[str | None, str]:
    if asked.architecture == "nemotron_h":
        return _said(asked.config, "mamba_ssm_cache_dtype") or (
            "fp32",
            "its default for Nemotron-H",
        )
    if asked.architecture.startswith("qwen3_5"):
        text = asked.config.get("text_config")
        config = text if isinstance(text, Mapping) else asked.config
        return _said(config, "mamba_ssm_dtype") or (form, "the model's format")
    if "kimi_delta" in asked.kinds:
        return "fp32", "its default for Kimi Delta Attention"
    return form, "the model's format"


def _sglang_state(asked: Asked, form: str | None) -> tuple[str | None, str]:
    del form
    return _said(asked.config, "mamba_ssm_dtype") or ("fp32", "its default")


def _said(config: Mapping[str, Any], key: str) -> tuple[str | None, str] | None:
    """What a configuration says of the state; None where it leaves that open."""
    value = config.get(key)
    if value is None or value == "auto":
        return None
    name = NAMES.get(value) if isinstance(value, str) else None
    if name is None:
        return None, f"{key} in config.json is {str(value)[:40]!r}, which is no format"
    return name, f"{key} in config.json"


def _vllm_notes(asked: Asked, form: str) -> Iterator[str]:
    if asked.gguf:
        yield "it loads no GGUF: this is of the checkpoint that the file was made from"
    if asked.kinds & {*MAMBA, "gated_delta"} and form != "fp32":
        yield (
            f"its convolution rounds every product to {form}; --mamba-cache-dtype "
            "float32 leaves them in fp32"
        )
    if "gated_delta" in asked.kinds and asked.architecture != "olmo_hybrid":
        yield (
            "from compute capability 9.0 on FlashInfer's kernels run its prefill, which"
            " are not followed; --gdn-prefill-backend triton"
        )
    if "mamba1" in asked.kinds:
        yield (
            "a state that is neither in the model's format nor in fp32 fails at the "
            "first prefill"
        )
    if asked.kinds - {"mamba1"}:
        yield "kernels are tuned at every start: two servers may add in another order"


def _sglang_notes(asked: Asked, form: str) -> Iterator[str]:
    if "mamba1" in asked.kinds and form != "bf16":
        yield "the convolution runs in bf16, its window's format"
    if "mamba2" in asked.kinds:
        yield "a text's chunks are cut by what is packed in front of it"


VLLM_STACK, SGLANG_STACK = STACKS = (
    Stack(
        "vLLM",
        "0.33.0",
        "--mamba-ssm-cache-dtype",
        default=_vllm_state,
        window=None,
        runs=_vllm_runs,
        notes=_vllm_notes,
        also_to_nearest=", under Triton those of draft tokens, too",
    ),
    Stack(
        "SGLang",
        "0.5.23",
        "--mamba-ssm-dtype",
        default=_sglang_state,
        window="bf16",
        runs=lambda held, asked, form: True,
        notes=_sglang_notes,
    ),
)


def _followed_by(stack: Stack) -> tuple[str, ...]:
    """Implementations that run mixers of `MAMBA` as it does by default, those that any
    machine runs last."""
    from ._registry import IMPLEMENTATIONS

    found = [one for one in IMPLEMENTATIONS.values() if one.follows == stack.name]
    return tuple(one.name for one in sorted(found, key=lambda one: not one.needs_gpu))


def _measured(
    precisions: Sequence[PrecisionReport],
    form: str,
    state: str | None,
    followed: tuple[str, ...],
) -> PrecisionReport | None:
    """The run by steps that has both formats, by who follows the stack if anyone."""
    for run in precisions:
        if followed and run.measured_by not in followed:
            continue
        if (run.mode, run.precision, run.state_precision) == ("decode", form, state):
            return run
    return None
