"""Whether a block is what its tensors look like: its own output says it.

Equal names and shapes can be another function. Our flow is run on what the block read;
what the block gave lies within the bounds of an execution in the block's own type, and
no further away than independent roundings make probable, or it is refused with the
distance. The bound alone would let much through: in fp32 it is 15 % of the output of a
block that is 768 wide, where what is seen is 4e-7 of it.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import UsageError
from ..arithmetic._fp64 import in_fp64
from ..bounds.block_probes import block_roundings
from ..bounds.local import sublayer_bound, with_operator_norms
from ..bounds.passes import exact_pass
from ..checkpoints.files._files import quote
from ..formats import TF32_OPERAND
from ..implementations import Execution, SublayerRecord, executions_for
from ..implementations._compiled import compiled
from ..mixers import Call, Mixer, model_of_call
from ..mixers._capture import NormInFront
from ..mixers._found import REGISTER
from ..models import Model
from ..sublayers.residual import Incoming


OF_KERNELS_ALONE = ("mamba3", "selective_scan", "chunk_scan")
"""Kinds of which torch's own operations are not declared."""


MOST_Z = 8.0
"""Times what independent roundings make of the output, root mean square: blocks that
are what they look like lie at 0.9 to 1.7 in 16 bits (`tests/watch/test_verified.py`).
In fp32 an operation draws once where a sum of n terms rounds n times: sqrt(n) more."""
DRAWS = 2
IN_TORCH = "transformers"
IN_KERNELS = "emulated"
"""Whose declarations a block is held to: torch's operations, the libraries' kernels."""
KERNEL_LIBRARIES = frozenset({"mamba_ssm"})
"""Packages whose classes run those kernels."""
CENTRED = ("rwkv4",)
"""Kinds whose norm in front is a LayerNorm; of those that say nothing it is none."""


class Verified(NamedTuple):
    """A call of a block that was found to be what it looks like."""

    call: Call
    mixer: Mixer
    model: Model
    ids: np.ndarray
    """Tokens of the model, which stand for what the block read."""
    distance: float
    """L2 of what the block gave less the reference, over the reference's."""
    share: float
    """The most of its bound that an element of the block's output is off by."""
    z: float
    """The distance over what independent roundings make of the output."""
    norm_front: bool = False
    """Whether the model begins with the norm in front of the block."""


class _Tried(NamedTuple):
    mixer: Mixer
    model: Model
    ids: np.ndarray
    incoming: Incoming
    exact: Any
    distance: float


@in_fp64
def verified(call: Call, source: str) -> Verified:
    """Find which of its candidates a block is, and hold it to its bounds; with the norm
    in front of it, where that is verified as well.

    **Arguments:**

    - `source`: what the network is called.

    **Raises:** `UsageError` with the distance where it is none of them.
    """
    tried = [_tried(call, mixer, call.read, source) for mixer in call.candidates]
    best = min(tried, key=lambda one: one.distance)
    wrote = jax.device_put(call.wrote.astype(np.float64))
    fits = [_fit(call, best, execution, wrote) for execution in _executions(call, best)]
    fit = next((one for one in fits if one.holds), fits[0])
    if not fit.holds:
        why = f"{fit.share:.3g} times what {call.dtype} can explain"
        if fit.share <= 1.0:
            why = f"{fit.z:.3g} times what roundings in {call.dtype} make of it, "
            why += f"{fit.most:.3g} at the most"
        raise UsageError(
            f"{quote(call.title)} has the tensors of a {best.mixer.kind} block and is "
            f"another function: its output is {best.distance:.2g} of its size away, "
            f"{why}",
            hint=_hint(call),
        )
    found = Verified(
        call, best.mixer, best.model, best.ids, best.distance, fit.share, fit.z
    )
    return _behind_its_norm(found, fit, wrote, source)


class _Fit(NamedTuple):
    """How what a block gave lies to what is declared of it."""

    share: float
    """Of the bound."""
    z: float
    most: float
    """The largest z that is believed."""
    expected: float
    """L2 of what independent roundings make of the output."""

    @property
    def holds(self) -> bool:
        return self.share <= 1.0 and self.z <= self.most


def _fit(call: Call, one: _Tried, execution: Execution, wrote: Any) -> _Fit:
    drawn = block_roundings(one.model, one.ids, execution, n_probes=DRAWS, seed=0).drawn
    expected = float(np.sqrt(np.mean(np.sum(drawn**2, axis=(1, 2, 3)))))
    sizes: Any = one.mixer.sizes
    sums = max(sizes.d_model, getattr(sizes, "d_inner", 0), call.read.shape[1])
    reduced = any(fmt.is_reduced for fmt in execution.sites.values())
    most = MOST_Z if reduced else MOST_Z * float(np.sqrt(sums))
    share = _share(one, execution, wrote)
    return _Fit(share, _z(one, wrote, expected), most, expected)


def _z(one: _Tried, wrote: Any, expected: float) -> float:
    apart = float(np.linalg.norm(np.asarray(wrote) - np.asarray(one.exact)))
    return apart / expected if expected > 0 else float(apart > 0) * np.inf


def _behind_its_norm(found: Verified, fit: _Fit, wrote: Any, source: str) -> Verified:
    """The block with the norm whose output it read, where both together are what they
    look like; else the block alone."""
    call = found.call
    mixer = None if call.norm is None else _normed(found.mixer, call.norm)
    if call.norm is None or mixer is None:
        return found
    front = _tried(call, mixer, call.norm.read, source)
    z = _z(front, wrote, fit.expected)
    if z > fit.most:
        return found
    share = min(_share(front, e, wrote) for e in _executions(call, front))
    if share > 1.0:
        return found
    apart = {"model": front.model, "ids": front.ids, "distance": front.distance}
    return found._replace(**apart, share=share, z=z, norm_front=True)


def _hint(call: Call) -> str:
    if call.device.startswith("cuda") and call.dtype == "fp32":
        return (
            "convolutions in TF32 are another arithmetic: torch.backends.cudnn."
            f"allow_tf32 = False; else {REGISTER}"
        )
    return REGISTER


def _normed(mixer: Mixer, norm: NormInFront) -> Mixer | None:
    """The block with a norm in front; None where its kind has none of that sort."""
    sizes: Any = mixer.sizes
    how: dict[str, Any] = {"norm_epsilon": norm.epsilon}
    if hasattr(sizes, "norm_centred"):
        how["norm_centred"] = norm.centred
    elif norm.centred != (mixer.kind in CENTRED):
        return None
    front = {"norm": norm.weight}
    if norm.bias is not None:
        front["norm_bias"] = norm.bias
    sizes = dataclasses.replace(sizes, norm_front=True, **how)
    return Mixer(sizes, {**mixer.weights, **front})


def _tried(call: Call, mixer: Mixer, read: np.ndarray, source: str) -> _Tried:
    """A candidate in exact arithmetic."""
    model, ids = model_of_call(mixer, read, source)
    stream = model.embed(ids)
    incoming = Incoming(stream, jnp.zeros_like(stream))
    (place,) = model.sublayers
    p = model.parameters(0)
    exact = exact_pass(place.flow, incoming, p, model.start(p))
    apart = np.linalg.norm(call.wrote.astype(np.float64) - np.asarray(exact))
    size = float(np.linalg.norm(np.asarray(exact)))
    distance = float(apart) / size if size > 0 else float(apart > 0) * np.inf
    return _Tried(mixer, model, ids, incoming, exact, distance)


def _executions(call: Call, one: _Tried) -> Iterator[Execution]:
    """What is declared in the block's type, of torch operations and of kernels.

    In 16 bits ports store here and not there: a value may be rounded wherever one of
    these stores it, or be kept.
    """
    precision = "fp32" if call.dtype == "fp64" else call.dtype
    measures = [IN_TORCH, IN_KERNELS]
    if call.library in KERNEL_LIBRARIES or one.mixer.kind in OF_KERNELS_ALONE:
        measures = [IN_KERNELS]
    # of Mamba-3 with ranks no prefill in fp32 is declared
    rank = getattr(one.mixer.sizes, "rank", None)
    mode = "decode" if rank and precision == "fp32" else "prefill"
    for measure in measures:
        (found,) = executions_for(
            one.model.config,
            [precision],
            architecture=one.mixer.kind,
            mode=mode,
            measure=measure,
        )
        if call.device == "cpu":  # which has no TF32
            found = _without_tf32(found)
        yield found if precision == "fp32" else compiled(found)


def _without_tf32(execution: Execution) -> Execution:
    """The same where products read fp32 whole."""
    sites = {k: fmt for k, fmt in execution.sites.items() if fmt is not TF32_OPERAND}
    kinds = {name: _without_tf32(one) for name, one in execution.kinds.items()}
    return dataclasses.replace(execution, sites=sites, kinds=kinds)


def _share(one: _Tried, execution: Execution, wrote: Any) -> float:
    """The largest share of its bound that an element is off by; inf beyond a bound that
    is not finite."""
    (place,) = one.model.sublayers
    held = one.model.parameters(0, execution)
    original = (
        None
        if one.model.held_exactly(0, execution)
        else one.model.parameters(0, function=execution)
    )
    record = SublayerRecord.of(place, one.incoming, wrote, {}, {})
    found = sublayer_bound(
        execution.of(place.kind),
        place.flow,
        record,
        with_operator_norms(held),
        original,
        one.model.start(held),
    )
    comparison = found.comparison
    if int(np.sum(comparison.violations)) or int(np.sum(comparison.unbounded)):
        measured, bound = (
            np.sqrt(np.asarray(square))
            for square in (comparison.measured_square, comparison.bound_square)
        )
        worst = float(np.max(np.where(bound > 0, measured / bound, np.inf)))
        return max(worst, np.nextafter(1.0, 2.0))
    measured, bound = comparison.measured_square, comparison.bound_square
    ratio = np.sqrt(np.sum(measured) / max(float(np.sum(bound)), np.finfo(float).tiny))
    return float(ratio)


def source_of(module: Any) -> str:
    """What a network in memory is called."""
    return f"{type(module).__name__} in memory"


def renumbered(rows: Sequence[Any], number: int, title: str) -> list[Any]:
    """Rows of a single sublayer as those of the block with this number."""
    return [dataclasses.replace(row, layer=number, module=title) for row in rows]
