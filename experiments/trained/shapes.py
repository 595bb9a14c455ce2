"""The networks' sizes, chosen to be equal in parameters."""

from dataclasses import dataclass


KINDS = ("mamba1", "mamba2", "mamba3", "gpt_neox", "gated_delta", "kimi_delta")
ALL_KINDS = (*KINDS, "hybrid")
VOCABULARY = 256  # a token is a byte
HEADS = 8  # of the Mambas: rows of Mamba-2's in_proj must come in eights on CUDA
CONV = 4
ATTENTION_HEADS = 4
# Of delta rules; two value heads share a key head of Qwen3-Next, as in the released.
DELTA_HEADS, KEY_HEADS = 4, 2
MULTIPLE = 8  # of the feed-forward width
EQUAL = 0.02  # they differ by this share of parameters at most
# The hybrid: seven mixers, one in the middle being attention, and an MLP after each,
# whose width mamba_ssm rounds up to a multiple of 128.
HYBRID_LAYERS, ATTENTION_LAYER, HYBRID_MULTIPLE = 7, 3, 128


@dataclass(frozen=True)
class Shape:
    """Sizes of one network; `state` is the Mambas', `feed_forward` the MLPs'.

    A layer of GPT-NeoX, the hybrid or a delta rule is a mixer with its MLP. `state` of
    a delta rule is the width of a head's keys, and of its values.
    """

    kind: str
    width: int
    layers: int
    state: int = 0
    feed_forward: int = 0

    @property
    def inner(self) -> int:
        """Channels of a mixer."""
        return 2 * self.width

    @property
    def head_dim(self) -> int:
        """Channels of a mixer's head."""
        return self.inner // HEADS

    @property
    def dt_rank(self) -> int:
        """Rank of Mamba-1's dt."""
        return -(-self.width // 16)

    def parameters(self) -> int:
        """How many there are without the embedding, which is the head, too."""
        d, i, n = self.width, self.inner, self.state
        if self.kind == "mamba1":
            rank = self.dt_rank
            layer = d * 2 * i + i * (CONV + 1) + i * (rank + 2 * n) + i * (rank + 1)
            layer += i * n + i + i * d + d
        elif self.kind == "mamba2":
            layer = self._mamba2()
        elif self.kind == "mamba3":
            layer = d * (2 * i + 2 * n + 3 * HEADS + n // 4) + 2 * HEADS + 2 * HEADS * n
            layer += 2 * n + i * d + d
        elif self.kind == "hybrid":
            attention, mlp = 4 * d * d + d, 3 * d * self.feed_forward + d
            mixers = (self.layers - 1) * self._mamba2() + attention
            return mixers + self.layers * mlp + d
        elif self.kind in ("gated_delta", "kimi_delta"):
            layer = self._delta() + 3 * d * self.feed_forward + 2 * d
        else:
            f = self.feed_forward
            layer = 4 * d * d + 4 * d + 2 * d * f + f + d + 4 * d
            return self.layers * layer + 2 * d
        return self.layers * layer + d

    def _mamba2(self) -> int:
        """Parameters of a Mamba-2 mixer and its norm."""
        d, i, n = self.width, self.inner, self.state
        mixer = d * (2 * i + 2 * n + HEADS) + (i + 2 * n) * (CONV + 1) + 3 * HEADS
        return mixer + i + i * d + d

    def _delta(self) -> int:
        """Parameters of a delta rule without the norm in front."""
        d, n, heads = self.width, self.state, DELTA_HEADS
        v = heads * n
        if self.kind == "gated_delta":
            qkv, gates, decays = 2 * KEY_HEADS * n + v, d * v + 2 * heads * d, 2 * heads
        else:
            # two gates by way of as many channels as a head has
            qkv, gates, decays = 3 * v, 2 * n * (d + v) + heads * d, v + heads
        return qkv * (d + CONV) + gates + decays + n + v * d


def equal_shapes(width: int = 256, layers: int = 5) -> dict[str, Shape]:
    """The networks of one width and about as many parameters: all but the hybrid.

    Mamba-2 and 3 get a state of a quarter of the width, Mamba-1 its usual 16. GPT-NeoX
    gets four fifths of the layers. It and the delta rules get the feed-forward width
    with which they come nearest to the mean of the Mambas.
    """
    found = {
        "mamba1": Shape("mamba1", width, layers, 16),
        "mamba2": Shape("mamba2", width, layers, width // 4),
        "mamba3": Shape("mamba3", width, layers, width // 4),
    }
    mean = sum(shape.parameters() for shape in found.values()) / len(found)
    depths = {"gpt_neox": max(1, round(0.8 * layers))}
    for kind in KINDS[3:]:
        state = 0 if kind == "gpt_neox" else width // DELTA_HEADS
        sizes = (kind, width, depths.get(kind, layers), state)
        empty = Shape(*sizes).parameters()
        per_step = Shape(*sizes, MULTIPLE).parameters() - empty
        steps = max(1, round((mean - empty) / per_step))
        found[kind] = Shape(*sizes, MULTIPLE * steps)
    return found


def hybrid_shape(width: int = 256) -> Shape:
    """The hybrid that goes with networks of this width: three quarters as wide.

    Mamba-2's state is that of the pure model. At 256, five layers, it has as many
    parameters as the others; elsewhere only about.
    """
    narrow = max(16, 3 * width // 4 // 16 * 16)
    feed_forward = -(-width // 2 // HYBRID_MULTIPLE) * HYBRID_MULTIPLE
    return Shape("hybrid", narrow, HYBRID_LAYERS, width // 4, feed_forward)


def spread(shapes: dict[str, Shape]) -> float:
    """By which share the largest has more parameters than the smallest."""
    counts = [shape.parameters() for shape in shapes.values()]
    return max(counts) / min(counts) - 1
