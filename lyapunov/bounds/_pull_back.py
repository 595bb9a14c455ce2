"""What roundings inside a function do to read-outs behind it: adjoints, summed up."""

import jax
import jax.numpy as jnp

from ..arithmetic import Perturbed
from ..arithmetic.sampled import holds_numbers_of
from ..formats import FormatNumbers, StateNumbers, is_state_numbers, state_error_bound


def _error_bound(value, numbers: FormatNumbers | StateNumbers):
    """What a store may move a value by; overflow is told elsewhere, not here."""
    bound = lambda value: state_error_bound(jnp.abs(value), numbers)
    # a state inside a scan has its tokens in front
    size = jax.vmap(bound)(value) if is_state_numbers(numbers) else bound(value)
    return jnp.where(jnp.isfinite(size), size, 0.0)


def _variance_share(numbers: FormatNumbers | StateNumbers) -> float:
    """The variance of a rounding over the square of its largest size.

    1/3 for a uniform one. Stochastic rounding has f (1 - f) of a spacing squared, 1/6
    for f uniform, and its largest size is the spacing.
    """
    stochastic = is_state_numbers(numbers) and numbers.stochastic
    return 1 / 6 if stochastic else 1 / 3


def pulled_back(run, inputs, pulls, numbers, chunked: bool = False):
    """The reverse pass of `run(at, inputs) -> output` for each pull.

    **Returns:** for each execution, by site, `worst` and `variance`; and the pulls in
    front, as a tuple.
    """
    union = {site for sites in numbers for site in sites}
    repeats: dict[str, tuple[str, ...]] = {}
    in_blocks: set[str] = set()

    def sizes_in_block(site, x):
        return tuple(
            _error_bound(x, sites[site]) if site in sites else jnp.zeros_like(x)
            for sites in numbers
        )

    def perturbed(offsets, scan_offsets, gauges, inputs):
        at = Perturbed(
            offsets,
            scan_offsets,
            chunked=chunked,
            gauges=gauges,
            sizes=sizes_in_block,
        )
        output = run(at, inputs)
        repeats.update(at.repeats)
        in_blocks.update(at.in_blocks)
        return output, (at.records, at.scan_records)

    # The shapes of the stored tensors come from a run that is only traced.
    zero = {site: jnp.zeros(()) for site in sorted(union)}
    gauge = jnp.zeros((len(numbers), 2))
    gauges = dict.fromkeys(zero, gauge)
    shapes = jax.eval_shape(perturbed, zero, zero, gauges, inputs)[1]
    outside, inside = jax.tree.map(lambda shape: jnp.zeros(shape.shape), shapes)
    gauges = {site: gauge for site in sorted(in_blocks)}
    _, pull, values = jax.vjp(perturbed, outside, inside, gauges, inputs, has_aux=True)
    values = values[0] | values[1]
    sizes = [
        {
            site: _error_bound(values[site], sites[site])
            * _not_held_before(site, repeats, sites)
            for site in values
            if site in sites
        }
        for sites in numbers
    ]

    def one(given):
        by_site, by_scan_site, by_gauge, before = pull(given)
        adjoints = by_site | by_scan_site
        effects = [
            {
                site: _effect(adjoints[site], size[site], _variance_share(sites[site]))
                for site in size
            }
            | {
                site: _of_gauge(
                    by_gauge[site][i],
                    _not_held_before(site, repeats, sites),
                    _variance_share(sites[site]),
                )
                for site in gauges
                if site in sites
            }
            for i, (sites, size) in enumerate(zip(numbers, sizes, strict=True))
        ]
        return effects, before

    return jax.lax.map(one, pulls)


def _not_held_before(site, repeats, sites):
    again = jnp.ones(())
    for earlier in repeats[site]:
        if earlier in sites:
            held = holds_numbers_of(sites[site], sites[earlier])
            again = jnp.where(held, 0.0, again)
    return again


def _effect(adjoint, size, variance_share: float):
    moved = jnp.abs(adjoint) * size
    return {
        "worst": jnp.sum(moved),
        "variance": jnp.sum(moved**2) * variance_share,
    }


def _of_gauge(sums, counts, variance_share: float):
    """As `_effect`, of the sums that `gauged` made block by block."""
    return {"worst": sums[0] * counts, "variance": sums[1] * counts * variance_share}
