"""What the reference's loss says of the checkpoint: a pure function of the report."""

from collections.abc import Iterator

from lyapunov.findings._catalogue import finding_of
from lyapunov.results._check import Exponents, Finding, ReferenceLoss


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
        yield finding_of(
            "LYA016",
            None,
            f"the fp64 reference needs {told} for this text, a uniform guess "
            f"{loss.uniform_bits:.3g}",
            value=mean,
            limit=loss.uniform_bits,
        )
        return
    if loss.unigram_bits is None or loss.unigram_stderr is None:
        return
    if mean - loss.unigram_stderr > loss.unigram_bits:
        yield finding_of(
            "LYA017",
            None,
            f"the fp64 reference needs {told} for this text, its own frequencies "
            f"alone {loss.unigram_bits:.3g}",
            value=mean,
            limit=loss.unigram_bits,
        )


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
