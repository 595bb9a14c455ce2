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
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..formats import FormatNumbers, StateNumbers, is_state_numbers
from ._bounded_values import Bounded, BoundedState, Lengths, RoundingModel, lift
from ._interface import CHOSEN, AbstractArithmetic, ScanKernel
from ._row_blocks import emptied, over_blocks
from .rules import entries, functions, rows, scans, storage, sums


def _operation(rule: Callable) -> Any:
    """A rule as a method: its interpreter is what it is told of the execution."""
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
        keeps_stores: bool = False,
        in_scan: bool = False,
        chunked: bool = False,
        chunks_at_once: bool = False,
        calls: tuple[int, ...] = (),
        growths: dict[int, Float[Array, ""]] | None = None,
        compiled: bool = False,
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
        self.keeps_stores = keeps_stores
        self.in_scan = in_scan
        self.chunked = chunked
        self.chunks_at_once = chunks_at_once
        self.calls = calls
        self.growths = growths
        self.compiled = compiled
        # of anchors, those of the block of rows that is being gone through
        self._rows: Int[Array, " rows"] | None = None

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
        of_state = isinstance(x, BoundedState) or is_state_numbers(numbers)
        if anchor is not None and not self.in_scan and not of_state:
            anchor = anchor if self._rows is None else anchor[:, self._rows]
            x = storage.on_the_nearest_turn(lift(x), anchor) if angle else lift(x)
            self.records[site], x = storage.store_at_anchor(numbers, x, anchor)
            return x
        stored = storage.store(self, numbers, x)
        if self.keeps_stores and isinstance(stored, Bounded):
            self.records[site] = stored
        if angle and isinstance(stored, Bounded):
            return storage.stored_a_turn_away(numbers, lift(x), stored)
        return stored

    def may_store(self, site, x):
        """Off by as much as a store moves, wherever the value goes."""
        if site not in self.sites:
            return x
        return storage.may_store(self, self.sites[site], x)

    def apply(self, operation, *operands):
        """By the operation's own rule."""
        return operation.with_errors(self, *operands)

    add = _operation(entries.add)
    multiply = _operation(entries.multiply)
    negate = _operation(entries.negate)
    carry = _operation(entries.carry)
    view = _operation(entries.view)
    join = _operation(entries.join)
    clip = _operation(entries.clip)
    mask = _operation(entries.mask)
    reached = _operation(entries.reached)
    fixed = _operation(entries.fixed)

    fading = _operation(functions.fading)
    turns = _operation(functions.turns)
    wrap = _operation(functions.wrap)

    rms_normalise = _operation(rows.rms_normalise)
    layer_normalise = _operation(rows.layer_normalise)
    softmax = _operation(rows.softmax)
    shares = _operation(rows.shares)

    einsum = _operation(sums.einsum)
    cumsum = _operation(sums.cumsum)
    causal_conv = _operation(sums.causal_conv)

    initial_state = _operation(scans.initial_state)
    advance = _operation(scans.advance)
    step = _operation(scans.step)
    contract = _operation(scans.contract)

    def largest(self, x, count):
        """By its rule, and observed: no kernel makes a choice."""
        self.observed[CHOSEN] = chosen = rows.largest(self, x, count)
        return chosen

    def in_row_blocks(self, body, x, rows):
        """One block after another; of a trace's anchors each takes its own rows."""
        x = lift(x)
        if rows >= x.shape[0]:
            return body(self, x, jnp.arange(x.shape[0]))

        def make(_):
            inside = emptied(self)
            return inside, lambda: self._kept(inside.records)

        def of_these(at, block, places):
            at._rows = places
            return body(at, block, places)

        output, kept = over_blocks(make, of_these, x, rows)
        self.records.update(kept)
        return output

    def _kept(self, records: dict) -> dict:
        """What stays of a block's records; arrays whose second axis are its rows."""
        if not self.keeps_stores:
            return records
        return {
            site: Lengths(x.norm, jnp.linalg.norm(x.value, axis=-1))
            for site, x in records.items()
        }

    def scan(self, body, state, inputs):
        """`jax.lax.scan` of the body with its errors, one token at a time."""

        def one(state, x):
            return body(self._inside_scan(), state, x)

        state, outputs = jax.lax.scan(one, state, inputs)
        return scans.finish(self, state), outputs


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
    - `keeps_stores`: put into `records` what each store outside a scan holds.
    - `chunked`: run a recurrence that has a chunked form in it.
    - `chunks_at_once`: hand states on in that form as `AbstractArithmetic` says.
    - `calls`: tokens of each call, where chunks begin anew with several.
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
            finish=scans.finish,
        )

    def _inside_scan(self):
        return self._within(self.model)

    def _within(
        self, model: RoundingModel, growths: Any = None, compiled: bool = False
    ) -> "BoundedArithmetic":
        return BoundedArithmetic(
            self.sites,
            model,
            accumulation_depth=self.accumulation_depth,
            reduction_depth=self.reduction_depth,
            scan_depth=self.scan_depth,
            centred=self.centred,
            in_scan=True,
            chunks_at_once=self.chunks_at_once,
            growths=growths,
            compiled=compiled,
        )
