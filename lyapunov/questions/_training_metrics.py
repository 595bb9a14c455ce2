"""What a training logs of the blocks of any network, whoever runs it."""

from typing import Any

from .._errors import UsageError
from ._figures import figures_of
from ._undisturbed import evaluating, undisturbed
from ._watch import watch


def training_metrics(module: Any, inputs: Any, **settings: Any) -> dict[str, float]:
    """Check the blocks of a network that is being trained, and give what is logged.

    Modes, parameters, gradients, buffers and random numbers stay as they are; the
    network runs in `eval` mode, so that nothing is drawn. Named as `StabilityCallback`
    names them: `lyapunov/max_exponent`, `decay_min`, `decay_max`, `memory_tokens`,
    `findings`, and with `output=` `measured_divergence`, relative, of the network's own
    output, and `predicted_divergence`, which `probes=0` leaves out with its ten
    forwards. What is not known, or not finite, is left out.

    **Arguments:**

    - `inputs`: what the module is given: a tuple of arguments, a dictionary of named
      ones, or the only one.
    - `settings`: those of `watch`. Unless they say otherwise the precision is bf16, and
      the effort quick: no bounds.

    **Raises:** as `watch`, also where weights have become such that nothing can be
    said: a loop that is to go on catches `lyapunov.LyapunovError`.
    """
    if settings.get("progress") is not None:
        raise UsageError("training_metrics shows no progress", hint="leave it out")
    watched = watch(module, **{"precisions": ["bf16"], "effort": "quick"} | settings)
    given, named = (inputs if isinstance(inputs, tuple) else (inputs,)), {}
    if isinstance(inputs, dict):
        given, named = (), inputs
    with evaluating(module), undisturbed(module):
        report = watched(*given, **named)
    return {f"lyapunov/{name}": value for name, value in figures_of(report).items()}
