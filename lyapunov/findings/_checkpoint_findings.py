"""What exponents, decays, parameters and the loss say of the checkpoint itself."""

import math
from collections.abc import Iterator
from dataclasses import replace

from lyapunov.findings._catalogue import finding_of
from lyapunov.formats._precision import Precision
from lyapunov.formats._table import FORMAT_TABLE, half_step_below_one
from lyapunov.results._check import Exponents, Finding, LayerExponents, ReferenceLoss


DECAYS_AT_ONE = 0.01
"""Share of decays equal to 1 from which a layer counts as marginal. Less is how a
selective model skips a token."""

SMALLEST_DT = 2.0**-126
"""Smallest normal fp32; the kernels compute dt in fp32 and flush what is below."""


def untrained_finding(sublayers: int) -> Finding:
    """LYA020, of a network of so many sublayers."""
    every = "the one sublayer" if sublayers == 1 else f"all {sublayers:,} sublayers"
    message = f"norms, D and matrices of {every} are as before training"
    return finding_of("LYA020", None, message)


def exponent_findings(layer: LayerExponents, untrained: bool) -> Iterator[Finding]:
    """Exponents that are not negative, values that are not finite, and parameters that
    look lost, unless the whole network is `untrained`."""
    largest = layer.max
    if largest is not None and largest >= 0:
        message = f"largest exponent {largest:+.3g} nats per token is not negative"
        yield finding_of("LYA001", layer.layer, message, largest, 0.0)
    named = {
        "the largest exponent": layer.max,
        "the state": layer.max_abs_state,
        "the output": layer.max_abs_output,
    }
    bad = [name for name, value in named.items() if overflowed(value)]
    if bad:
        message = f"{' and '.join(bad)} is not finite in the reference"
        yield finding_of("LYA002", layer.layer, message)
    if layer.suspicions and not untrained:
        found = finding_of("LYA008", layer.layer, "; ".join(layer.suspicions))
        hint = all(text.startswith("hint:") for text in layer.suspicions)
        yield replace(found, hint=hint)


def overflowed(value: float | None) -> bool:
    """Whether a figure is there and is NaN or inf."""
    return value is not None and (math.isnan(value) or value == math.inf)


def decay_findings(
    layer: LayerExponents, state: str, stored_every: int = 1
) -> Iterator[Finding]:
    """Decays that are 1 in the state's format, and dt that underflows.

    **Arguments:**

    - `stored_every`: tokens from one store of the state to the next. What a state
      forgets in between is forgotten in fp32.
    """
    # rounded stochastically, a decay near 1 is kept on average; a scale moves no step
    held = Precision.named(state)
    form = held.format
    lost = form in FORMAT_TABLE and not held.stochastic
    limit = half_step_below_one(form) if lost else None
    # an exponent of a delta rule is no mean of decays: its gates are counted below
    largest = layer.max if layer.heads is None else None
    once = "" if stored_every == 1 else f", which is stored every {stored_every} tokens"
    if largest is not None:
        largest *= stored_every
    # of single tokens: of several only the mean is known
    counted = lost and stored_every == 1
    share = (layer.decay_is_one or {}).get(form, 0.0) if counted else 0.0
    if limit is not None and largest is not None and -limit <= largest < 0:
        message = (
            f"the slowest channel's mean decay is 1 in {state}{once}: "
            f"exponent {largest:.3g}, and {state} tells it from 0 below {-limit:.2g}"
        )
        yield finding_of("LYA006", layer.layer, message, largest, -limit, state)
    elif share >= DECAYS_AT_ONE:
        message = f"{share:.1%} of the decays are 1 in {state}, the state's format"
        yield finding_of("LYA006", layer.layer, message, share, DECAYS_AT_ONE, state)
    if layer.dt_min is not None and layer.dt_min < SMALLEST_DT:
        least = layer.dt_min
        message = f"dt underflows in fp32: its smallest value is {least:.2g}"
        yield finding_of("LYA006", layer.layer, message, least, SMALLEST_DT, state)


def loss_findings(loss: ReferenceLoss, *, untrained: bool = False) -> Iterator[Finding]:
    """LYA016 above the uniform guess, else LYA017 above the text's own frequencies,
    each by more than the standard error.

    **Arguments:**

    - `untrained`: the weights are a fresh initialisation, of which no better is due.
    """
    if not loss.judged or loss.stderr is None or untrained:
        return
    mean = loss.loss_bits_per_token
    told = f"{mean:.3g} ± {loss.stderr:.1g} bits a token"
    if mean - loss.stderr > loss.uniform_bits:
        message = (
            f"the fp64 reference needs {told} for this text, a uniform guess "
            f"{loss.uniform_bits:.3g}"
        )
        yield finding_of("LYA016", None, message, mean, loss.uniform_bits)
        return
    if loss.unigram_bits is None or loss.unigram_stderr is None:
        return
    if mean - loss.unigram_stderr > loss.unigram_bits:
        message = (
            f"the fp64 reference needs {told} for this text, its own frequencies "
            f"alone {loss.unigram_bits:.3g}"
        )
        yield finding_of("LYA017", None, message, mean, loss.unigram_bits)


def looks_untrained(exponents: Exponents, loss: ReferenceLoss | None) -> bool:
    """Whether every sublayer that tells is at its initialisation, and no loss on text
    says that the network learnt something."""
    told = [
        layer.at_initialisation
        for layer in exponents.layers
        if layer.at_initialisation is not None
    ]
    if not told or not all(told):
        return False
    learnt = (
        loss is not None
        and loss.judged
        and loss.unigram_bits is not None
        and loss.loss_bits_per_token < loss.unigram_bits
    )
    return not learnt
