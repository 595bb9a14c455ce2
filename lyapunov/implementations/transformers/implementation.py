"""transformers as an implementation, on a CPU and on a GPU.

Each defect was seen: by running that version, by reading its source, or by a report
that names it. What training and adapters meet was read in transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..._errors import UsageError
from .._implementation import (
    AbstractImplementation,
    Defect,
    Flag,
    PassedOver,
    Runner,
)
from .._ways import SCHEDULED


if TYPE_CHECKING:
    from .._execution import Execution


LIBRARIES = {
    "transformers": "transformers",
    "torch": "torch",
    "fla": "flash-linear-attention",
}

_CHUNKS = (
    "a call over several tokens keeps the window of the convolution and starts the "
    "scan from a state of zeros, whatever the cache holds"
)
_PADDED_RIGHT = (
    "a prompt with padding on the right leaves zeros in the cached window of the "
    "convolution, and the cached state decays over the padding",
    "https://github.com/huggingface/transformers/issues/48256, open in August 2026",
)
_WINDOW_OF_PADDING = (
    "a prompt with padding on the right leaves zeros in the cached window of the "
    "convolution",
    "https://github.com/huggingface/transformers/blob/v5.24.0/src/transformers/models/"
    "lfm2/modeling_lfm2.py, Lfm2ShortConv",
)
_PADDED_LEFT = (
    "what in_proj reads of padding is masked and what it puts out is not: its bias "
    "stands in the window of the convolution in front of the text",
    "https://github.com/huggingface/transformers/blob/v5.24.0/src/transformers/models/"
    "mamba2/modeling_mamba2.py, as in its other mixers",
    "proj_bias",
)

_RECURRENT_GEMMA = (
    "https://github.com/huggingface/transformers/blob/v5.24.0/src/transformers/models/"
    "recurrent_gemma/modeling_recurrent_gemma.py, RecurrentGemmaRecurrentBlock"
)
_WINDOW_LOST = (
    "a call over several tokens convolves as if there were none before it, and writes "
    "over the cached window without reading it",
    _RECURRENT_GEMMA,
)
_FADES = (
    "states of lightning attention decay over padding behind a prompt",
    "https://github.com/huggingface/transformers/blob/v5.24.0/src/transformers/models/"
    "minimax/modeling_minimax.py, MiniMaxLightningAttention",
)
_NOT_MASKED = (
    "recurrent blocks are given no mask: tokens of padding go through the convolution "
    "and the state",
    _RECURRENT_GEMMA,
)

_NO_MASK = (
    "the network reads no mask: tokens of padding go into its states",
    "https://github.com/huggingface/transformers/blob/v5.24.0/src/transformers/models/"
    "rwkv/modeling_rwkv.py (which warns of it) and xlstm/modeling_xlstm.py",
)

# Whose x_proj is a module, so that what the convolution stores is seen; of the others
# what out_proj reads is the first.
_SEEN = ("mamba1", "falcon_mamba", "jamba")
_UNSEEN = (
    *("zamba", "mamba2", "bamba", "granitemoehybrid", "falcon_h1", "nemotron_h"),
    "zamba2",
)
_DELTA = (
    *("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"),
    *("olmo_hybrid", "kimi_linear", "bailing_hybrid", "lara_mini"),
)

DEFECTS = (
    Defect(
        ("mamba1",),
        (5, 17),
        (5, 24),
        ("chunks",),
        "gated",
        _CHUNKS,
        "modeling_mamba.py of 5.17 to 5.24, whose mamba_selective_scan has no initial "
        "state; the same in Mamba-2 was https://github.com/huggingface/transformers/"
        "issues/46032, mended by pull request 46084",
    ),
    Defect(
        ("falcon_mamba", "jamba", "zamba"),
        (5, 24),
        (5, 24),
        ("chunks",),
        "gated",
        _CHUNKS,
        "the families' modeling files of 5.24, as https://github.com/huggingface/"
        "transformers/blob/v5.24.0/src/transformers/models/jamba/modeling_jamba.py; "
        "Mamba-2's was issue 46032",
    ),
    Defect(("mamba1",), (5, 15), (5, 24), ("padded_right",), "conv", *_PADDED_RIGHT),
    Defect(_SEEN[1:], (5, 24), (5, 24), ("padded_right",), "conv", *_PADDED_RIGHT),
    Defect(_UNSEEN, (5, 24), (5, 24), ("padded_right",), "gated", *_PADDED_RIGHT),
    Defect(_DELTA, (5, 24), (5, 24), ("padded_right",), "scan_output", *_PADDED_RIGHT),
    Defect(
        ("lfm2",), (5, 24), (5, 24), ("padded_right",), "gated", *_WINDOW_OF_PADDING
    ),
    Defect(("recurrent_gemma",), (5, 24), (5, 24), ("chunks",), "gated", *_WINDOW_LOST),
    Defect(("minimax",), (5, 24), (5, 24), ("padded_right",), "scan_output", *_FADES),
    Defect(
        ("recurrent_gemma",),
        (5, 24),
        (5, 24),
        ("padded_left", "padded_right"),
        "gated",
        *_NOT_MASKED,
    ),
    Defect(("rwkv",), (5, 24), (5, 24), ("padded_left",), "k", *_NO_MASK),
    Defect(
        ("xlstm",),
        (5, 24),
        (5, 24),
        ("padded_left", "padded_right"),
        "scan_output",
        *_NO_MASK,
    ),
    Defect(_SEEN, (5, 24), (5, 24), ("padded_left",), "conv", *_PADDED_LEFT),
    Defect(_UNSEEN, (5, 24), (5, 24), ("padded_left",), "gated", *_PADDED_LEFT),
)

_OF_MAMBA1 = PassedOver(("dt_proj", "conv1d"), ("x_proj", "out_proj"))
_OF_MAMBA2 = PassedOver(("conv1d",), ("out_proj",))


class TransformersImplementation(AbstractImplementation):
    """Run a network with transformers' classes in torch, on the CPU."""

    name = "transformers"
    measures = True
    needs_gpu = False
    installed_by = "'lyapunov-check[torch]'"
    libraries = LIBRARIES
    followed_by_dumps = True
    reproducible = True
    ways = (
        *("whole", "steps", "chunks", "padded_left", "padded_right", "batched"),
        *("initial_state", "compiled"),
    )
    refused_ways: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(SCHEDULED, "transformers schedules no requests here"),
        "drafts": "calls of several steps are not run with transformers here",
        "packed": "transformers' networks are given no sequence numbers here, which "
        "would part packed texts",
    }
    defects = DEFECTS
    ignores_dt_limits = True
    trains_otherwise: ClassVar[Mapping[str, str]] = {
        "falcon_mamba": "in train mode with mamba_ssm's kernels dt is normalised "
        "behind dt_proj, and before it everywhere else"
    }
    passed_over: ClassVar[Mapping[str, PassedOver]] = {
        "mamba1": _OF_MAMBA1,
        "falcon_mamba": _OF_MAMBA1,
        "jamba": PassedOver(("dt_proj", "conv1d")),
        "zamba": PassedOver(("conv1d",)),
        "mamba2": _OF_MAMBA2,
        "bamba": _OF_MAMBA2,
        "granitemoehybrid": _OF_MAMBA2,
        "falcon_h1": _OF_MAMBA2,
        "nemotron_h": _OF_MAMBA2,
        "zamba2": _OF_MAMBA2,
    }

    def state_precisions(self, mode: str) -> tuple[str, ...]:
        """Its caches hold states in fp32; xLSTM's in the model's format."""
        del mode
        return ("fp32",)

    def promised(
        self,
        config: Any,
        precision: str,
        architecture: str,
        mode: str,
        state_precision: str | None,
    ) -> Execution:
        """Every torch operation stores its result."""
        from .networks import transformers_network

        found = transformers_network(config, architecture, precision, mode)
        if state_precision not in (None, found.state_precision):
            raise UsageError(
                f"in {mode} {architecture}'s cache is in {found.state_precision}",
                hint="leave --state-precision out, or --measure emulated",
            )
        return found

    def runner(self, execution: Execution) -> Runner:
        """Run texts with its modules: whole, from its own cache, padded, in a batch."""
        from .runner import Transformers

        return Transformers(execution)

    def reads(self, config: Mapping[str, Any]) -> bool:
        """Its own layout names a `model_type`."""
        return bool(config.get("model_type"))

    def flags(self, state: str | None, weights: str | None) -> list[Flag]:
        """Its cache keeps the state in fp32, and in nothing else."""
        from .._flags import of_library

        kept = "none needed", "its cache keeps the state in fp32"
        return of_library(self.name, kept if state == "fp32" else None, weights)


class TransformersCudaImplementation(AbstractImplementation):
    """Run a network without recurrences with transformers' classes, on a GPU."""

    name = "transformers_cuda"
    measures = True
    needs_gpu = True
    installed_by = "'lyapunov-check[torch]'"
    libraries = LIBRARIES
    ways = ()
    refused_ways: ClassVar[Mapping[str, str]] = {}

    def state_precisions(self, mode: str) -> tuple[str, ...]:
        """There is no state; fp32 is what holds one in a report."""
        del mode
        return ("fp32",)

    def promised(
        self,
        config: Any,
        precision: str,
        architecture: str,
        mode: str,
        state_precision: str | None,
    ) -> Execution:
        """Every torch operation stores its result, by cuBLAS's sums."""
        del state_precision
        from .networks import transformers_cuda_network

        return transformers_cuda_network(config, architecture, precision, mode)

    def runner(self, execution: Execution) -> Runner:
        """Run texts with its modules on a GPU."""
        from .runner import Transformers

        return Transformers(execution, device="cuda")
