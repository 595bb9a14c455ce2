"""Values with certified errors: the interpreter behind T0, T1 and perturbation bounds.

A value v carries e >= 0, elementwise, and n, the L2 norm over the last axis, such
that every execution of the declared kind computes some v' with |v' - v| <= e and
||v' - v|| <= n at every token. v is the exact result, computed in fp64.

Sources: the standard model of floating-point arithmetic (Higham 2002, section 2.2)
in Rump's ufp form for stores; running error analysis (Higham, section 3.3); for the
scan, a lemma of our own that holds in every bracketing, see `rules.scans`. The rules
stand in `rules`, each with its inequality; here is the table of them.

What the bounds themselves lose in fp64 is `SAFETY`'s. Behind a value that may be an
infinity or a NaN, or an operation that may overflow, the error is inf, unless a rule
says why not.
"""

import abc
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from ..formats import (
    FormatNumbers,
    OperandNumbers,
    StateNumbers,
    is_state_numbers,
)
from ._bounded_values import Bounded, BoundedState, RoundingModel, lift
from ._called import called
from ._form import WHOLE, Form
from ._interface import CHOSEN, AbstractArithmetic, ScanKernel
from ._row_blocks import at_once, emptied, over_blocks
from .rules import (
    delta,
    delta_chunk,
    entries,
    functions,
    log_weights,
    rows,
    scans,
    storage,
    sums,
)
from .rules.ellipsoids import BoundedColumns


def _operation(rule: Callable) -> Any:
    """A rule as a method: its interpreter is what it is told of the execution."""

    @functools.wraps(rule)
    def method(self, *operands, **named):
        return called(rule, self, *operands, **named)

    return method


def _in_place(rule: Callable) -> Any:
    """A rule that moves entries, or is of one token, which is never called."""
    return rule


class AbstractBoundedArithmetic(AbstractArithmetic):
    """The rules that no execution and no change of parameters has of its own."""

    channel_block = 512

    def __init__(
        self,
        sites: Mapping[str, FormatNumbers | StateNumbers],
        model: RoundingModel,
        *,
        accumulation_depth: Callable[[int], int] = lambda terms: terms,
        reduction_depth: Callable[[int], int] = lambda terms: terms,
        scan_depth: int = 0,
        anchors: Mapping[str, Float[Array, "..."]] | None = None,
        centred: bool = False,
        keeps: Callable[[Bounded, Any], Any] | None = None,
        in_scan: bool = False,
        form: Form = WHOLE,
        growths: dict[int, Float[Array, ""]] | None = None,
        compiled: bool = False,
        as_functions: bool = False,
    ):
        self.records = {}
        self.observed = {}
        self.sites = sites
        self.model = model
        self.accumulation_depth = accumulation_depth
        self.reduction_depth = reduction_depth
        self.scan_depth = scan_depth
        self.anchors = anchors or {}
        self.centred = centred
        self.keeps = keeps
        self.in_scan = in_scan
        self.form = form
        self.growths = growths
        self.compiled = compiled
        self.as_functions = as_functions
        # the rows of a block that is being gone through, and along which axis anchors
        # have them
        self._rows: Int[Array, " rows"] | None = None
        self._axis = 0

    @abc.abstractmethod
    def _inside_scan(self) -> "AbstractBoundedArithmetic":
        """The interpreter for the body of a scan."""

    def stores(self, site):
        """Whether the execution names this site."""
        return site in self.sites

    def store(self, site, x, *, angle=False):
        """Round to the site's format; at an anchor the bound is kept, see `storage`."""
        if site not in self.sites:
            return x
        numbers, anchor = self.sites[site], self.anchors.get(site)
        operand = isinstance(numbers, OperandNumbers)
        of_state = isinstance(x, BoundedState) or is_state_numbers(numbers)
        of_state = of_state and not operand
        if anchor is not None and not self.in_scan and not of_state:
            if self._rows is not None:
                anchor = jax.lax.dynamic_slice_in_dim(
                    anchor, self._rows[0], self._rows.shape[0], self._axis
                )
            x = storage.on_the_nearest_turn(lift(x), anchor) if angle else lift(x)
            rule = storage.operand_at_anchor if operand else storage.store_at_anchor
            own = anchor
            bound, x = called(rule, self, numbers, x, anchor)
            self._record(site, bound, own if operand else x.value)
            return x
        stored = called(storage.store, self, numbers, x)
        if self.keeps and isinstance(stored, Bounded):
            self._record(site, stored, None)
        if angle and isinstance(stored, Bounded):
            return storage.stored_a_turn_away(numbers, lift(x), stored)
        return stored

    def _record(self, site: str, bound: Bounded, own: Any) -> None:
        kept = self.keeps(bound, own) if self.keeps else bound
        if kept is not None:
            self.records[site] = kept

    def may_store(self, site, x, *, rescaled=False):
        """Off by as much as a store moves, wherever the value goes."""
        if site not in self.sites:
            return x
        return storage.may_store(self, self.sites[site], x, rescaled=rescaled)

    def apply(self, operation, *operands):
        """By the operation's own rule."""
        return called(operation.with_errors, self, *operands)

    add = _operation(entries.add)
    multiply = _operation(entries.multiply)
    negate = _in_place(entries.negate)
    carry = _in_place(entries.carry)
    view = _in_place(entries.view)
    join = _in_place(entries.join)
    clip = _operation(entries.clip)
    mask = _operation(entries.mask)
    reached = _operation(entries.reached)
    fixed = _operation(entries.fixed)

    fading = _operation(functions.fading)
    turns = _operation(functions.turns)
    wrap = _operation(functions.wrap)

    rms_normalise = _operation(rows.rms_normalise)
    unit_normalise = _operation(rows.unit_normalise)
    layer_normalise = _operation(rows.layer_normalise)
    softmax = _operation(rows.softmax)
    shares = _operation(rows.shares)

    einsum = _operation(sums.einsum)
    cumsum = _operation(sums.cumsum)
    causal_conv = _operation(sums.causal_conv)

    initial_state = _in_place(scans.initial_state)
    advance = _in_place(scans.advance)
    step = _in_place(scans.step)
    contract = _operation(scans.contract)

    store_under = _operation(log_weights.store_under)
    store_scale = _operation(log_weights.store_scale)

    columns = _in_place(delta.columns)
    store_columns = _operation(delta.store_columns)
    solve_unit_lower = _operation(delta_chunk.solve_unit_lower)
    delta_step = _operation(delta.step)
    delta_read = _operation(delta.read)
    delta_chunk = _operation(delta.chunk)

    def largest(self, x, count):
        """By its rule, and observed: no kernel makes a choice."""
        self.observed[CHOSEN] = chosen = rows.largest(self, x, count)
        return chosen

    def in_row_blocks(self, body, state, x, rows, *, pairs=False):
        """One block after another; of a trace's anchors each takes its own rows.

        A recurrence's carrier goes from block to block as it goes from token to token,
        so that the bound is that of one scan, whatever its brackets (`rules.scans`).
        """
        if at_once(x, rows):
            return body(self, state, x)

        def make(_, places):
            at = emptied(self, _rows=places, _axis=int(pairs))
            return at, lambda: (at.records, {} if pairs else at.observed)

        state, output, (records, observed) = over_blocks(
            make, body, state, x, rows, enter=self._as_carried, axis=int(pairs)
        )
        self.records.update(records)
        self.observed.update(observed)
        whole = lambda x: scans.finish(self, x)
        return jax.tree.map(whole, state, is_leaf=_is_value), output

    def _as_carried(self, state: Any, like: Any) -> Any:
        """A state in the form that a block of rows leaves it in."""

        def one(like, x):
            if isinstance(like, BoundedState):
                return self.initial_state(x)
            if isinstance(like, BoundedColumns):
                return self.columns(x)
            return lift(x) if isinstance(like, Bounded) else x

        return jax.tree.map(one, like, state, is_leaf=_is_value)

    def scan(self, body, state, inputs):
        """`jax.lax.scan` of the body with its errors, one token at a time."""

        def one(state, x):
            return body(self._inside_scan(), state, x)

        state, outputs = jax.lax.scan(one, state, inputs)
        return self._after_scan(state), outputs

    def _after_scan(self, state):
        """The state as a value; within a block of rows the scan goes on in the next."""
        return state if self._rows is not None else scans.finish(self, state)


def _is_value(x: Any) -> bool:
    return isinstance(x, Bounded | BoundedState)


class BoundedArithmetic(AbstractBoundedArithmetic):
    """Interpret a flow with certified errors.

    **Arguments:**

    - `sites`: the format of each stored site.
    - `model`: the inner arithmetic.
    - `accumulation_depth`: terms of a matrix product -> most additions that a term
      goes through.
    - `reduction_depth`: the same for a norm's sum.
    - `scan_depth`: most additions that a term of the scan goes through, over the
      whole sequence.
    - `anchors`: stored tensors of a trace. Where a site has one, the bound of the
      operation that ends there is put into `records` and the flow goes on from the
      trace's own value without error: this is T0.
    - `centred`: follow the executions themselves, which compute nearly exactly between
      stores and round there: the value is the middle of what they may have stored, the
      errors are distances from it, not from exact arithmetic. They hold what the
      execution leaves open: orders of sums, last bits of exponentials, and values
      close enough to a rounding tie to fall on the other side.
    - `keeps`: what `records` gets of a store outside a scan, arrays with an entry for
      each row, or None: of a bound and the trace's own value at anchors, elsewhere of
      what is stored and None. Without it the bounds at anchors themselves are kept.
    - `form`: in which a recurrence runs.
    - `as_functions`: rules become functions of the program that is traced, see
      `called`; for whoever compiles a whole sublayer.
    """

    matmul = _operation(sums.matmul)
    decay = _operation(scans.decay)

    def kernel(self, terms):
        """The inner arithmetic's numbers, and what its sums grow by."""
        depths = (terms + 1, self.scan_depth + 1)

        def inside(numbers, *, compiled: bool = False):
            *model, of_sum, of_scan = numbers
            growths = dict(zip(depths, (of_sum, of_scan), strict=True))
            return self._within(RoundingModel(*model), growths, compiled)

        return ScanKernel(
            numbers=(*self.model, *(scans.grown_by(self, n) for n in depths)),
            inside=inside,
            rows=lambda B, c: (scans.drive_row(self, B), scans.read_out_row(self, c)),
            finish=lambda inside, state: inside._after_scan(state),
        )

    def _inside_scan(self):
        return self._within(self.model)

    def _within(
        self, model: RoundingModel, growths: Any = None, compiled: bool = False
    ) -> "BoundedArithmetic":
        inside = BoundedArithmetic(
            self.sites,
            model,
            accumulation_depth=self.accumulation_depth,
            reduction_depth=self.reduction_depth,
            scan_depth=self.scan_depth,
            centred=self.centred,
            in_scan=True,
            form=self.form,
            growths=growths,
            compiled=compiled,
        )
        inside._rows = self._rows
        return inside
