"""Lyapunov spectra of any step function, by the method that its structure allows."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from .._arguments import positive, shown, whole
from .._errors import ArgumentError
from ..arithmetic._fp64 import in_fp64
from ..recurrences.base import (
    AbstractRecurrence,
    DecayAndDrive,
    DiagonalRecurrence,
    GivenJacobians,
)
from ._automatic import Automatic
from ._batch_means import AbstractErrorBars, Windows, is_constant
from ._closed_form import ClosedForm
from ._cosines import SlowestCosines
from ._given import (
    inputs_given,
    key_given,
    numbers_given,
    options_given,
    state_given,
    step_given,
)
from ._method import AbstractMethod, System
from ._result import SpectrumResult
from ._singular import why_minus_infinity


# Error bars want a few hundred windows; many exponents would make many numbers of more.
MOST_WINDOWS, LEAST_WINDOWS, MOST_NUMBERS = 1024, 256, 2**18
WINDOWS_A_CHECK = 64


# No window may hold more of the squared deviations of growth where a run stops.
LARGEST_SHARE = 1 / 12


class Converged(eqx.Module):
    """Stop as soon as the standard errors are small enough and known well enough.

    A check that comes often stops at a low estimate now and then. So a run goes on
    while the scatter of its windows, taken as independent, makes a larger standard
    error than `error_bars` does, while one window holds more than a twelfth of the
    squared deviations (a few rare events then make the error bar), and, to the end,
    while growth has not varied at all. Behind a stop 95 % intervals cover within 2
    points of what they do of all tokens: over 2000 runs 94.2 and 94.3 % of white noise
    (95.0 and 95.7 of all), 94.8 % (94.3) of decays of 0.01 that 0.2 % of tokens
    interrupt by 50, over 1000 runs 93.2 % (95.0) of log-normal decays.

    No rule sees what has not happened: of events in fewer than about 3 in n tokens, n
    those that were run, there may be none among them (as in 5 % of runs at 3 in n), and
    neither exponent nor interval then knows of them.

    **Arguments:**

    - `stderr`: nats per token; of every exponent that is finite, and of one at least.
    - `every`: tokens between two checks, a power of two at best. A last part that is
      shorter is not run.
    - `error_bars`: how the standard errors are formed; where they are withheld, the
      run goes on.
    """

    stderr: float = eqx.field(static=True)
    every: int = eqx.field(static=True, default=1024)
    error_bars: AbstractErrorBars = SlowestCosines()

    def __check_init__(self):
        positive(self.stderr, "stderr")
        whole(self.every, "every", 1)
        if not isinstance(self.error_bars, AbstractErrorBars):
            raise ArgumentError(
                f"error_bars is {shown(self.error_bars)}",
                hint="such as SlowestCosines()",
            )


@in_fp64
def lyapunov_spectrum(
    step: Callable | AbstractRecurrence,
    state: Any,
    inputs: Any,
    *,
    k: int | None = None,
    method: AbstractMethod | None = None,
    key: PRNGKeyArray | None = None,
    transient: int = 0,
    until: Converged | None = None,
) -> SpectrumResult:
    r"""Compute the Lyapunov exponents of a step along a trajectory.

    They are growth rates of the product of its Jacobians,
    $\lambda_j = \lim \frac1T \log r_j$ with $r_j$ the growth of the j-th direction
    under $\prod_t \partial x_t / \partial x_{t-1}$, the inputs held fixed.

    **Arguments:**

    - `step`: `(state, input) -> state` in JAX, or a recurrence. It is given float64,
      whatever `jax_enable_x64` is.
    - `state`: at the start; an array or a pytree of them, of any real type.
    - `inputs`: stacked along the first axis, one entry a token. For an autonomous
      system the number of steps as an integer; `step` is then given None.
    - `k`: how many of the largest exponents; all by default.
    - `method`: by default `Automatic()`, what the structure allows: `ClosedForm()` for
      a diagonal recurrence, `OnKeys()` for a delta rule, `ByBlocks()` for a
      block-triangular one, else `QR()`.
    - `key`: for methods with a random start; `jax.random.key(0)` by default.
    - `transient`: tokens at the start that are run and not counted, while the state
      settles and vectors turn.
    - `until`: stop earlier, by this rule. All tokens given are the most.

    **Returns:** the exponents in nats per token, the largest first, with their
    history and error bars. Batches are `jax.vmap`'s business.

    **Raises:** `ArgumentError` for a step that does not return such a state, for
    torch's tensors, for no tokens, or a method that the structure does not allow.
    """
    options_given(method, until, transient, k, (AbstractMethod, Converged))
    step, state = step_given(step), state_given(state)
    given, inputs = inputs_given(inputs)
    n_tokens = _counted(given, transient, until)
    system = System.of(step, state)
    method = Automatic() if method is None else method
    key = key_given(key)
    k = method.number(system, k)
    exponents, growth, multiplicity, used, converged, resolved, width = _run(
        method, system, inputs, k, key, transient, n_tokens, until
    )
    if until is not None and not isinstance(used, Tracer) and jnp.ndim(used) == 0:
        growth = growth[: -(-int(used) // width)]  # what lies behind is empty
    notes = method.notes(system, k) + _unseen(until, used) + _hidden(resolved)
    exact = isinstance(method.chosen(system), ClosedForm)
    if not exact and _any_minus_infinity(exponents):
        notes += (why_minus_infinity(system, inputs, given),)
    return SpectrumResult(
        exponents=exponents,
        growth=growth,
        used=used,
        width=width,
        multiplicity=multiplicity,
        method=method.name(system),
        notes=notes,
        converged=converged,
        resolved=resolved,
    )


def _hidden(resolved) -> tuple[str, ...]:
    """How many exponents are known by their sum alone, where that can be seen."""
    if resolved is None or isinstance(resolved, Tracer) or bool(jnp.all(resolved)):
        return ()
    return (
        f"{int(jnp.sum(~resolved))} of {resolved.size} exponents are not resolved "
        "(`resolved`): at some token fp64 does not tell them apart, so that their sum "
        "is known and they themselves are not",
    )


def _any_minus_infinity(exponents) -> bool:
    """Whether there is one, where that can be seen: not under `jit`."""
    seen = not isinstance(exponents, Tracer)
    return seen and bool(jnp.any(jnp.isneginf(exponents)))


def _unseen(until: Converged | None, used) -> tuple[str, ...]:
    """What a run that may stop early cannot know of."""
    if until is None:
        return ()
    known = not isinstance(used, Tracer) and jnp.ndim(used) == 0
    tokens = f"the {int(used)} tokens" if known else "the tokens"
    return (
        f"may stop early: events in fewer than about 3 of {tokens} seen may be missing "
        "from exponents and error bars",
    )


@in_fp64
def lyapunov_spectrum_of(
    jacobians: Float[Any, "seq d d"] | Float[Any, "seq d"],
    *,
    k: int | None = None,
    method: AbstractMethod | None = None,
    key: PRNGKeyArray | None = None,
    transient: int = 0,
    until: Converged | None = None,
) -> SpectrumResult:
    """Compute the Lyapunov exponents of given Jacobians, as of another library's model.

    **Arguments:**

    - `jacobians`: the step Jacobians in order, rows the state after the token,
      columns that before; or their diagonals, if that is all they have. Anything that
      NumPy can read: an array, a tensor in main memory. Taken to float64, exactly.
    - The others as in `lyapunov_spectrum`.

    **Raises:** `ArgumentError` for another shape, or for what is no array of numbers.
    """
    if not isinstance(jacobians, Array):
        jacobians = numbers_given(jacobians, "jacobians")
    shape = jacobians.shape
    if len(shape) not in (2, 3) or 0 in shape or shape[1] != shape[-1]:
        raise ArgumentError(
            f"jacobians have shape {shape}",
            hint="give (tokens, d, d), or the diagonals as (tokens, d)",
        )
    jacobians = jnp.asarray(jacobians).astype(jnp.float64)
    state = jnp.zeros(shape[1], jnp.float64)
    recurrence, inputs = GivenJacobians(), jacobians
    if len(shape) == 2:
        recurrence = DiagonalRecurrence()
        log_decay = jnp.log(jnp.abs(jacobians))
        inputs = DecayAndDrive(log_decay, jnp.zeros_like(log_decay))
    return lyapunov_spectrum(
        recurrence,
        state,
        inputs,
        k=k,
        method=method,
        key=key,
        transient=transient,
        until=until,
    )


def _counted(given: int, transient: int, until: Converged | None) -> int:
    """How many tokens count at most; refuse none."""
    if given < 1:
        raise ArgumentError(
            "there are no tokens, so nothing grows", hint="give one or more"
        )
    if not 0 <= transient < given:
        raise ArgumentError(
            f"transient is {transient} and there are {given} tokens",
            hint="leave one or more to count",
        )
    n_tokens = given - transient
    if until is None:
        return n_tokens
    if n_tokens < until.every:
        raise ArgumentError(
            f"until checks every {until.every} tokens and there are {n_tokens} to "
            "count",
            hint="give more tokens or a smaller `every`",
        )
    return n_tokens // until.every * until.every


@eqx.filter_jit
def _run(method, system, inputs, k, key, transient, n_tokens, until):
    """Transient, all tokens or chunks until the rule is met, and the k largest."""
    carry, grain = method.start(system, k, key), method.grain(system)
    if transient:
        first = jax.tree.map(lambda x: x[:transient], inputs)
        whole_of_it = -(-transient // grain) * grain
        carry, _ = method.advance(system, carry, first, transient, whole_of_it)
        inputs = jax.tree.map(lambda x: x[transient:], inputs)
    multiplicity = jnp.asarray(method.multiplicity(system))
    if until is None:
        windows = min(MOST_WINDOWS, max(LEAST_WINDOWS, MOST_NUMBERS // k))
        width = -(-n_tokens // (windows * grain)) * grain
        carry, growth = method.advance(system, carry, inputs, n_tokens, width)
        used, converged = jnp.asarray(n_tokens), None
    else:
        width = _width(until.every, grain)
        carry, growth, used, converged = _until(
            method, system, carry, inputs, n_tokens, until, width
        )
    # by the whole, so that columns don't change places along the history
    total = growth.sum(axis=0)
    order = jnp.argsort(total, descending=True)[:k]
    growth = growth[:, order]
    exponents = total[order] / used.astype(growth.dtype)
    if multiplicity.size == total.size:
        multiplicity = multiplicity[order]
    else:
        multiplicity = multiplicity[:k]
    resolved = method.resolved(system, carry)
    if resolved is not None:
        resolved = resolved[order]
    return exponents, growth, multiplicity, used, converged, resolved, width


def _width(every: int, grain: int) -> int:
    """Tokens a window: the largest count of windows that divides a check's tokens."""
    if every % grain:
        raise ArgumentError(
            f"until checks every {every} tokens and the method's blocks are {grain}",
            hint=f"give a multiple of {grain}",
        )
    units = every // grain
    windows = max(n for n in range(1, WINDOWS_A_CHECK + 1) if units % n == 0)
    return every // windows


def _until(method, system, carry, inputs, n_tokens, until, width):
    """Chunks, each followed by a check."""
    every = until.every
    per_chunk = every // width

    def chunk(carry, number):
        own = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, number * every, every), inputs
        )
        return method.advance(system, carry, own, every, width)

    found = jax.eval_shape(chunk, carry, 0)[1]
    growth = jnp.zeros((n_tokens // width, found.shape[1]), found.dtype)

    def go_on(looped):
        number, done, _, _ = looped
        return (number < n_tokens // every) & ~done

    def once_more(looped):
        number, _, carry, growth = looped
        carry, new = chunk(carry, number)
        growth = jax.lax.dynamic_update_slice(growth, new, (number * per_chunk, 0))
        number = number + 1
        last = number >= n_tokens // every
        done = _settled(until, Windows(growth, number * every, width), last)
        return number, done, carry, growth

    start = jnp.asarray(0), jnp.asarray(False), carry, growth
    number, done, carry, growth = jax.lax.while_loop(go_on, once_more, start)
    return carry, growth, number * every, done


def _settled(until: Converged, windows: Windows, last):
    """Whether the exponents of these windows are known as well as is asked for."""
    n = windows.used // windows.width
    live = jnp.arange(len(windows.growth))[:, None] < n
    rate = jnp.where(live, windows.growth, 0) / windows.width
    mean = rate.sum(axis=0) / n
    finite = jnp.isfinite(mean)
    away = jnp.where(live & finite, rate - jnp.where(finite, mean, 0), 0)
    constant = is_constant(away, live, mean, jnp)
    squares = away**2
    total = squares.sum(axis=0)
    stderr = jnp.maximum(until.error_bars(windows).stderr, jnp.sqrt(total) / n)
    spread = squares.max(axis=0) <= LARGEST_SHARE * total
    # that nothing has happened so far is no reason to stop looking
    small = (stderr <= until.stderr) & jnp.where(constant, last, spread)
    return jnp.all(small | ~finite) & jnp.any(finite)
