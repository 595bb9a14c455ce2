"""vLLM's operators of delta rules: of an installed vLLM, or of its files alone.

They lie apart from those of Mamba, and are looked for when a network asks for them.
"""

import atexit
import functools
import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from ..._errors import UsageError
from .._kernel_files import Replaceable
from ._operators import FILES, INSTALL, KERNELS, operators, tune_nothing
from ._stand_in import register


FLA = "vllm.third_party.flash_linear_attention.ops"
KDA = "vllm.models.kimi_k3.nvidia.ops.third_party.kda"
NEEDED = (FLA, KDA)
"""Packages of their kernels, and where they lie in a folder of unpacked files."""


class DeltaOperators(NamedTuple):
    """The functions that vLLM's mixers of delta rules call."""

    prepared: Callable
    """`fused_post_conv_prep`: what a prefill of a Gated DeltaNet reads."""
    chunks: Callable
    """`chunk_gated_delta_rule`."""
    step: Callable
    """`fused_recurrent_gated_delta_rule_packed_decode`."""
    window: Callable
    """`fused_sigmoid_gating_delta_rule_update`, of drafts."""
    kimi_chunks: Callable
    """`chunk_kda_with_fused_gate`."""
    kimi_step: Callable
    """`fused_recurrent_kda_packed_decode`."""
    kimi_window: Callable
    """`fused_recurrent_kda`, of drafts."""


delta_operators = Replaceable(lambda: _found())
"""Finds them, once a process; **Raises:** `UsageError` where they are not beside those
of Mamba."""
delta_operators_replaced = delta_operators.replaced


@functools.cache
def _found() -> DeltaOperators:
    interpreted = operators().interpreted
    folder = os.environ.get(FILES)
    if folder and getattr(importlib.import_module("vllm"), "__file__", None) is None:
        _stand_in(Path(folder), interpreted)
    get = lambda package, name: importlib.import_module(f"{package}.{name}")
    try:
        kda, kda_steps = get(KDA, "chunk"), get(KDA, "fused_recurrent")
        steps, windows = get(FLA, "fused_recurrent"), get(FLA, "fused_sigmoid_gating")
        before = get(FLA, "fused_gdn_prefill_post_conv")
        found = DeltaOperators(
            prepared=before.fused_post_conv_prep,
            chunks=get(FLA, "chunk").chunk_gated_delta_rule,
            step=steps.fused_recurrent_gated_delta_rule_packed_decode,
            window=windows.fused_sigmoid_gating_delta_rule_update,
            kimi_chunks=kda.chunk_kda_with_fused_gate,
            kimi_step=kda_steps.fused_recurrent_kda_packed_decode,
            kimi_window=kda_steps.fused_recurrent_kda,
        )
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"vLLM's operators of delta rules cannot be loaded ({error})",
            hint=f"{INSTALL}, with {' and '.join(p.replace('.', '/') for p in NEEDED)}",
        ) from None
    if interpreted:
        chunk = "chunk_delta_h chunk_o chunk_scaled_dot_kkt cumsum solve_tril wy_fast"
        for name in chunk.split():
            tune_nothing(get(FLA, name))
        for name in ("chunk", "chunk_intra", "chunk_intra_token_parallel"):
            tune_nothing(get(KDA, name))
    return found


def _stand_in(folder: Path, interpreted: bool) -> None:
    """What the files ask for of the rest of vLLM, and where packages lie.

    **Raises:** `UsageError` for a folder without them.
    """
    import triton

    KERNELS.demand(folder, tuple(name.replace(".", "/") for name in NEEDED))
    paths = {name: [str(folder / name.replace(".", "/"))] for name in NEEDED}
    if interpreted:
        paths[FLA].insert(0, str(_interpretable(folder)))
    register(
        {
            "vllm.utils.math_utils": {
                # 1 / log 2, as vLLM writes it
                "RCP_LN2": 1.4426950408889634,
                "cdiv": triton.cdiv,
                "next_power_of_2": triton.next_power_of_2,
            },
            "vllm.utils.gpu_sync_debug": {"gpu_sync_allowed": nullcontext},
            "vllm.utils.torch_utils": {
                "async_tensor_h2d": lambda x, device, dtype=None: x.to(device, dtype)
            },
            **{name: {"__path__": path} for name, path in paths.items()},
        }
    )


def _interpretable(folder: Path) -> Path:
    """A folder with the two files that the interpreter does not run as they are: loops
    of one count in Python's integers, which have no method that widens them, and the
    other gives functions of Triton's names of its own, which the interpreter does not
    find."""
    files, own = folder / FLA.replace(".", "/"), Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    text = (files / "chunk_delta_h.py").read_text()
    (own / "chunk_delta_h.py").write_text(text.replace("i_t.to(tl.int64)", "i_t"))
    text = (files / "op.py").read_text()
    for name in ("exp", "exp2", "log", "log2"):
        function = f"@triton.jit\n    def {name}(x):\n        return tl.{name}(x)\n"
        text = text.replace(f"    {name} = tl.{name}\n", f"    {function}")
    (own / "op.py").write_text(text)
    return own


@contextmanager
def watched(kind: str, seen: dict[str, Any]) -> Iterator[None]:
    """Copy what functions of a chunk hand one another while a prefill runs, to `seen`,
    (tokens, heads, ...) by site."""
    kimi = kind == "kimi_delta"
    module: Any = importlib.import_module(f"{KDA if kimi else FLA}.chunk")
    units = iter(("q_unit", "k_unit"))
    found: dict[str, Callable[[Any], dict[str, Any]]] = {
        "recompute_w_u_fwd": lambda given: {"w": given[0], "u": given[1]}
    }
    if kimi:
        found["chunk_kda_fwd_intra"] = lambda given: {"inverse": given[1]}
        found["l2norm_fwd"] = lambda given: {next(units): given}
        weights = found["recompute_w_u_fwd"]
        found["recompute_w_u_fwd"] = lambda given: {
            **weights(given),
            "k_decayed": given[3],
        }
    else:
        found["solve_tril"] = lambda given: {"inverse": given}

    def around(original: Callable, shown: Callable) -> Callable:
        def call(*given: Any, **named: Any) -> Any:
            results = original(*given, **named)
            seen.update({site: x[0].clone() for site, x in shown(results).items()})
            return results

        return call

    with ExitStack() as stack:
        for name, shown in found.items():
            own = around(getattr(module, name), shown)
            stack.enter_context(mock.patch.object(module, name, own))
        yield
