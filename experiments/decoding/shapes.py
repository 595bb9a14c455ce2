"""The 8B networks of arXiv:2406.07887: layers, sizes, bytes.

A letter a layer: M is Mamba-2, * attention, - an MLP. The hybrid's order and all sizes
are those of NVIDIA's configuration files. How many heads of keys the Transformer has is
not at hand: it is timed with 8 (as the hybrid's attention, and the harder to beat) and
with 32.
"""

from dataclasses import dataclass, replace


HYBRID = "M-M-M--M-M*-M-M-M-M--M*-M-M-M-M-M*--M-M-M-M-M*-M--M-M-M-"
BYTES = 2  # of a number in bf16


@dataclass(frozen=True)
class Shape:
    """A network for generation; `groups`: heads of keys and values."""

    name: str
    layers: str
    groups: int = 8
    width: int = 4096
    heads: int = 32
    head_dim: int = 128
    feed_forward: int = 16384
    vocabulary: int = 256_000
    ssm_heads: int = 128
    ssm_head_dim: int = 64
    ssm_groups: int = 8
    state: int = 128
    conv: int = 4

    @property
    def inner(self) -> int:
        """Channels of a Mamba-2 mixer."""
        return self.ssm_heads * self.ssm_head_dim

    @property
    def conv_channels(self) -> int:
        """Channels of its convolution."""
        return self.inner + 2 * self.ssm_groups * self.state

    def parameters(self) -> int:
        """Embedding and head among them."""
        d = self.width
        keys = 2 * self.groups * self.head_dim
        queries = self.heads * self.head_dim
        attention = d * (queries + keys) + queries * d
        rows = 2 * self.inner + 2 * self.ssm_groups * self.state + self.ssm_heads
        mamba = d * rows + self.conv_channels * (self.conv + 1) + 3 * self.ssm_heads
        mamba += self.inner + self.inner * d
        sizes = {"M": mamba, "*": attention, "-": 2 * d * self.feed_forward}
        norms = (len(self.layers) + 1) * d * (2 if self.layer_norm else 1)
        return sum(sizes[one] for one in self.layers) + norms + 2 * self.vocabulary * d

    @property
    def layer_norm(self) -> bool:
        """LayerNorm, as the paper's Transformer has it; RMSNorm otherwise."""
        return "M" not in self.layers

    def per_token(self) -> int:
        """Bytes of a sequence's cache that every token of context adds."""
        return self.layers.count("*") * 2 * self.groups * self.head_dim * BYTES

    def per_sequence(self, state_bytes: int = BYTES) -> int:
        """Bytes of a sequence's states and windows, whatever its context."""
        state = self.inner * self.state * state_bytes
        window = self.conv_channels * self.conv * BYTES
        return self.layers.count("M") * (state + window)

    def held(self, batch: int, context: int, state_bytes: int = BYTES) -> int:
        """Bytes on the device while a step runs: weights, caches, logits in fp32."""
        caches = batch * (self.per_sequence(state_bytes) + context * self.per_token())
        logits = batch * self.vocabulary * (BYTES + 4)
        return self.parameters() * BYTES + caches + logits

    def moved(self, batch: int, context: int, state_bytes: int = BYTES) -> int:
        """Bytes that a step has to read, and the states that it writes.

        The embedding is not read but for a row a sequence.
        """
        weights = (self.parameters() - self.vocabulary * self.width) * BYTES
        caches = batch * context * self.per_token()
        return weights + caches + 2 * batch * self.per_sequence(state_bytes)


SHAPES = {
    "transformer": Shape("transformer", "*-" * 32),
    "hybrid": Shape("hybrid", HYBRID),
    "mamba2": Shape("mamba2", "M" * 56),
    "transformer, 32 heads of keys": Shape(
        "transformer, 32 heads of keys", "*-" * 32, groups=32
    ),
}


def tiny(shape: Shape) -> Shape:
    """The same layers' first ones, a hundred thousand times smaller: for a CPU."""
    return replace(
        shape,
        layers={"transformer": "*-*-", "hybrid": "M-M*-", "mamba2": "MMM"}.get(
            shape.name, "*-*-"
        ),
        groups=4 if shape.groups == 32 else 2,
        width=64,
        heads=4,
        head_dim=16,
        feed_forward=128,
        vocabulary=96,
        ssm_heads=8,
        ssm_head_dim=16,
        ssm_groups=2,
        state=16,
    )
