"""Whether a recurrence is what it declares."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .._errors import ArgumentError
from ..arithmetic._fp64 import in_fp64
from ..recurrences.base import (
    AbstractDiagonalRecurrence,
    AbstractKeyRecurrence,
    AbstractRecurrence,
    AbstractScalarRecurrence,
    AbstractTriangularRecurrence,
)
from ._given import floats_in_fp64, state_given
from ._method import System


DECLARE = (
    "declare what the step is; of an AbstractRecurrence nothing is assumed, and QR() "
    "takes its Jacobian as dense"
)


@in_fp64
def check_structure(recurrence: AbstractRecurrence, state: Any, inputs: Any) -> None:
    """Compare what a recurrence declares with its step, differentiated, at one token.

    A declared structure is believed: exponents of a step that is not what it declares
    are wrong numbers. Costs d tangents.

    **Arguments:**

    - `state`: with generic entries; couplings may vanish at 0.
    - `inputs`: of this one token.

    **Raises:** `ArgumentError` where an entry differs by more than rounding: 64 d units
    in the last place of the largest entry, which leaves the step 64 roundings an
    entry. For a block-triangular recurrence also where its parts do not make up the
    state, or both triangles hold entries.
    """
    state = state_given(state)
    inputs = floats_in_fp64(inputs)
    system = System.of(recurrence, state)
    d = system.state.size
    dense = np.asarray(jax.jacfwd(lambda x: system.step(x, inputs))(system.state))
    off = 64 * d * np.finfo(dense.dtype).eps * max(np.abs(dense).max(initial=0), 1e-300)
    _compare(recurrence.step_jacobian(state, inputs), dense, off, "step_jacobian")
    if isinstance(recurrence, AbstractDiagonalRecurrence):
        diagonal = jnp.exp(recurrence.log_decay(inputs)).ravel()
        if diagonal.shape != (d,):
            raise ArgumentError(
                f"log_decay has {diagonal.size} entries and the state has {d}",
                hint=DECLARE,
            )
        # exponents know the size of a decay alone
        _compare(jnp.diag(diagonal), np.abs(dense), off, "log_decay")
    if isinstance(recurrence, AbstractScalarRecurrence):
        heads = jnp.exp(recurrence.head_log_decay(inputs))
        repeated = np.repeat(np.asarray(heads), d // heads.size)
        _compare(np.diag(repeated), np.abs(dense), off, "head_log_decay")
    if isinstance(recurrence, AbstractKeyRecurrence):
        _check_on_keys(recurrence, state, inputs, dense)
    if isinstance(recurrence, AbstractTriangularRecurrence):
        _check_blocks(recurrence, state, inputs, dense, off)


def _check_on_keys(recurrence, state, inputs, dense):
    """Determinant and norm of every head's matrix; that it is one was compared."""
    heads, value_dim, key_dim = state.shape
    determinants = np.exp(recurrence.log_determinant(inputs))
    bounds = np.exp(recurrence.log_norm_bound(inputs))
    whole = dense.reshape(heads, value_dim, key_dim, heads, value_dim, key_dim)
    off = 64 * key_dim * np.finfo(dense.dtype).eps
    scales, rest = recurrence.scales_apart(inputs)
    _compare(
        np.asarray(recurrence.step_jacobian(state, rest))
        * np.tile(np.exp(scales)[:, None], (1, value_dim, 1)).ravel(),
        dense,
        off,
        "scales_apart",
    )
    for head in range(heads):
        M = whole[head, 0, :, head, 0, :]
        norm = np.linalg.norm(M, 2)
        # of LU, as of the entries: relative to the norm to the power of the size
        found, allowed = abs(np.linalg.det(M)), key_dim * off * norm**key_dim
        if not abs(determinants[head] - found) <= allowed:
            raise ArgumentError(
                f"log_determinant of head {head} is that of {determinants[head]:.6g} "
                f"and the step's determinant is {found:.6g}",
                hint=DECLARE,
            )
        if not norm <= bounds[head] * (1 + off):
            raise ArgumentError(
                f"log_norm_bound of head {head} is that of {bounds[head]:.6g} and the "
                f"step's norm is {norm:.6g}",
                hint=DECLARE,
            )


def _check_blocks(recurrence, state, inputs, dense, off):
    """The parts make up the state, one triangle is 0, blocks are recurrences'."""
    parts = recurrence.parts(state)
    flat = [ravel_pytree(part)[0] for part in parts]
    whole = ravel_pytree(state)[0]
    if not np.array_equal(np.concatenate(flat), whole):
        raise ArgumentError(
            f"parts have {[len(part) for part in flat]} entries and are not the "
            f"state's {whole.size} in their order",
            hint=DECLARE,
        )
    ends = np.cumsum([len(part) for part in flat])
    owner = np.searchsorted(ends, np.arange(len(dense)), side="right")
    below = np.abs(dense[owner[:, None] > owner]).max(initial=0)
    above = np.abs(dense[owner[:, None] < owner]).max(initial=0)
    if min(below, above) > off:
        raise ArgumentError(
            "the step Jacobian is not block triangular: between parts, entries reach "
            f"{below:.3g} below the diagonal blocks and {above:.3g} above",
            hint=DECLARE,
        )
    given = recurrence.block_inputs(state, inputs)
    blocks = zip(recurrence.blocks, parts, given, strict=True)
    for number, (block, part, own) in enumerate(blocks):
        mine = owner == number
        wanted = dense[np.ix_(mine, mine)]
        _compare(block.step_jacobian(part, own), wanted, off, f"block {number}")
        check_structure(block, part, own)


def _compare(declared, dense, off: float, name: str) -> None:
    declared = np.asarray(declared)
    if declared.shape != dense.shape:
        raise ArgumentError(
            f"{name} has shape {declared.shape} and the step's Jacobian {dense.shape}",
            hint=DECLARE,
        )
    gap = np.abs(declared - dense)
    if not gap.max(initial=0) <= off:
        row, column = np.unravel_index(np.argmax(gap), gap.shape)
        raise ArgumentError(
            f"{name} is {declared[row, column]:.6g} at entry ({row}, {column}) and the "
            f"step's derivative is {dense[row, column]:.6g}",
            hint=DECLARE,
        )
