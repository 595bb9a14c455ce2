"""What roundings inside a function do to read-outs behind it: adjoints, summed up."""

import jax
import jax.numpy as jnp

from ..arithmetic import Perturbed
from ..arithmetic._form import WHOLE, Form
from ..arithmetic.sampled import holds_numbers_of
from ..formats import FormatNumbers, StateNumbers, is_state_numbers, state_error_bound


def _error_bound(value, numbers: FormatNumbers | StateNumbers):
    """What a store may move a value by; overflow is told elsewhere, not here."""
    size = state_error_bound(jnp.abs(value), numbers)
    return jnp.where(jnp.isfinite(size), size, 0.0)


def _variance_share(numbers: FormatNumbers | StateNumbers) -> float:
    """The variance of a rounding over the square of its largest size.

    1/3 for a uniform one. Stochastic rounding has f (1 - f) of a spacing squared, 1/6
    for f uniform, and its largest size is the spacing.
    """
    stochastic = is_state_numbers(numbers) and numbers.stochastic
    return 1 / 6 if stochastic else 1 / 3


def pulled_back(run, inputs, pulls, numbers, form: Form = WHOLE):
    """The reverse pass of `run(at, inputs) -> output` for each pull.

    **Returns:** for each execution, by site, `worst` and `variance`; and the pulls in
    front, as a tuple.
    """
    repeats: dict[str, tuple[str, ...]] = {}

    def sizes(site, x):
        return tuple(
            _error_bound(x, sites[site]) if site in sites else jnp.zeros_like(x)
            for sites in numbers
        )

    def perturbed(gauges, inputs):
        at = Perturbed({}, form=form, gauges=gauges, sizes=sizes)
        output = run(at, inputs)
        repeats.update(at.repeats)
        return output

    gauge = jnp.zeros((len(numbers), 2))
    gauges = {site: gauge for sites in numbers for site in sites}
    _, pull = jax.vjp(perturbed, gauges, inputs)

    def one(given):
        sums, before = pull(given)
        effects = [
            {
                site: _effect(sums[site][i], site, repeats, sites)
                for site in sorted(repeats)
                if site in sites
            }
            for i, sites in enumerate(numbers)
        ]
        return effects, before

    return jax.lax.map(one, pulls)


def _effect(sums, site: str, repeats, sites):
    """Of the sums that `gauged` made; nothing of a number that was held before."""
    again = jnp.ones(())
    for earlier in repeats[site]:
        if earlier in sites:
            held = holds_numbers_of(sites[site], sites[earlier])
            again = jnp.where(held, 0.0, again)
    variance = sums[1] * again * _variance_share(sites[site])
    return {"worst": sums[0] * again, "variance": variance}
