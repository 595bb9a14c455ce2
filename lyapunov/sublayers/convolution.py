"""A mixer's short convolution, as programs that store its input or products have it.

vLLM 0.33.0 and SGLang 0.5.23 convolve in Triton (`mamba/ops/causal_conv1d.py`): inputs
are cast to the format of the window that their cache holds; where that and the weights
have 16 bits every product is rounded to them, and the bias and the products, the oldest
first, are added up in fp32. mamba_ssm's causal-conv1d and torch multiply in fp32.
"""

from ..arithmetic import AbstractArithmetic


SITES = ("conv_input", "conv_product")
"""In the order in which the flow comes to them; `conv_in_window` is what a kernel
stores behind the activation where it runs in the window's format."""


def convolved(at: AbstractArithmetic, window, x, weight, bias):
    """Convolve (seq, channels) behind the last inputs of the call before.

    **Arguments:**

    - `window`: (width - 1, channels), in the format that a cache holds.
    - `weight`: (channels, width), the oldest tap first. `bias`: (channels).

    **Returns:** (seq, channels), and the window behind the last token.
    """
    seq = x.shape[0]
    padded = at.join([window, at.store("conv_input", x)])
    behind = padded[seq:]
    if not at.stores("conv_product"):
        return at.causal_conv(padded, weight, bias), behind
    taps, channels = weight.shape[1], weight.shape[0]
    products = [
        at.multiply(padded[tap : tap + seq], weight[:, tap], alone=True)
        for tap in range(taps)
    ]
    stored = at.store("conv_product", at.join(products, axis=-1))
    total = bias
    for tap in range(taps):
        own = slice(tap * channels, (tap + 1) * channels)
        total = at.add(stored[..., own], total)
    return total, behind
