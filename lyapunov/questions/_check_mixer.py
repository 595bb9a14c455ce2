"""A check of one block or one scan that somebody hands over as arrays."""

import time
from typing import Any

import jax
import numpy as np

from .._arguments import choice, shown
from .._errors import UsageError
from .._xla import demand_flags
from ..mixers import Call, Mixer, model_of_call
from ..mixers._mixer import as_array
from ..mixers._scans import ScanCall, channels_last
from ..results import Report
from ._request import Request, device_named
from ._verified import verified
from ._watch import MEASURES, SETTINGS, to_check
from ._watch_report import BlockCall, Subject, report_of_calls


NO_LOGITS = "a block that was handed over as arrays has no logits"
_NAMES = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def check_mixer(
    mixer: Mixer | ScanCall,
    inputs: Any = None,
    output: Any = None,
    *,
    name: str = "block",
    **settings: Any,
) -> Report:
    """Check a state-space block, or a scan alone, of arrays from any library.

    **Arguments:**

    - `mixer`: what `lyapunov.mixer` makes of a block's weights; or a call of a scan, as
      `lyapunov.mixers.selective_scan_call` and `chunk_scan_call` take it apart.
    - `inputs`: what the block read, (seq, d_model) or (batch, seq, d_model): a torch
      tensor or an array. A scan's call has its own.
    - `output`: what it gave on them, in its own type: then the block is verified, and
      refused where it is another function. None: the report says that it was not.
    - `name`: of the block in the report.
    - `settings`: those of `watch`.

    **Raises:** `UsageError` for shapes that do not fit, settings that there are not,
    and a block whose output says that it is another function.
    """
    began = time.perf_counter()
    demand_flags()
    strange = sorted(set(settings) - set(SETTINGS))
    if strange:
        raise UsageError(
            f"check_mixer takes no {strange[0]}", hint=f"one of {', '.join(SETTINGS)}"
        )
    choice(settings.get("measure", "emulated"), "measure", MEASURES)
    request = Request.of(**settings)
    own, read = _read(mixer, inputs)
    with jax.enable_x64(True), jax.default_device(device_named(request.device)):
        if output is None:
            model, ids = model_of_call(own, read, name)
            told = f"{name} is taken for {own.kind}: not verified, no output was given"
            call = BlockCall(name, name, own, model, ids, read, told)
        else:
            wrote = _wrote(own, read, output)
            kind = _NAMES[wrote.dtype.name]
            seen = Call(name, 0, (own,), read, wrote, kind, "cpu", "")
            call = to_check(verified(seen, name))
        subject = Subject(name, "what it read", NO_LOGITS)
        return report_of_calls([call], subject, request, began)


def _read(mixer: Mixer | ScanCall, inputs: Any) -> tuple[Mixer, np.ndarray]:
    """The block and what it read, (batch, seq, d_model)."""
    if isinstance(mixer, ScanCall):
        if inputs is not None:
            raise UsageError(
                "a scan's call was given inputs", hint="its arguments are what it read"
            )
        return mixer
    if not isinstance(mixer, Mixer):
        raise UsageError(
            f"check_mixer was given {shown(mixer)}",
            hint="lyapunov.mixer(kind, weights, ...), or a call of a scan",
        )
    wide = getattr(mixer.sizes, "d_model", None)
    if inputs is None:
        raise UsageError(
            "a block was given no inputs", hint=f"(batch, seq, {wide}): what it read"
        )
    read = as_array("inputs", inputs)
    read = read[None] if read.ndim == 2 else read
    if read.ndim != 3 or read.shape[-1] != wide or read.shape[1] < 2:
        raise UsageError(
            f"inputs of shape {read.shape}",
            hint=f"(batch, seq, {wide}), 2 tokens or more",
        )
    return mixer, read


def _wrote(mixer: Mixer, read: np.ndarray, output: Any) -> np.ndarray:
    """What it gave, (batch, seq, channels)."""
    wrote = as_array("output", output)
    if mixer.sizes.aside:
        wrote = channels_last(mixer.kind, wrote)
        wide = getattr(mixer.sizes, "channels", 0)
    else:
        wrote = wrote[None] if wrote.ndim == 2 else wrote
        wide = read.shape[-1]
    if wrote.shape != (*read.shape[:2], wide):
        raise UsageError(
            f"output of shape {wrote.shape}", hint=f"{(*read.shape[:2], wide)}"
        )
    return wrote
