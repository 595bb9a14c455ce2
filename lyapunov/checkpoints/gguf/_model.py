"""A GGUF file's model while it is read: its settings, its tensors, its layers."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..._errors import CorruptCheckpointError
from ..files._files import quote
from ._header import Skipped
from ._metadata import Metadata
from ._names import Names
from ._tensors import GgufTensor


_TOKENS = "tokenizer.ggml.tokens"
_UNTURNED = "none", ""
"""Types of scaled positions that are none."""


class FileModel:
    """Read settings and take tensors, and hold both to each other.

    **Arguments:**

    - `values`: the metadata. `architecture`: its `general.architecture`.
    - `shown`: the file, for messages.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        architecture: str,
        tensors: Mapping[str, GgufTensor],
        shown: str,
    ):
        self.metadata = Metadata(values, architecture, shown)
        self.names = Names(tensors, shown)
        self.shown = shown
        blocks = self.metadata.integer("block_count")
        if blocks > len(tensors):
            raise self.metadata.refuse("block_count", f"below {len(tensors)} tensors")
        self.blocks = blocks
        """Layers, those for more tokens at once among them."""
        more = 0
        if self.metadata.has("nextn_predict_layers"):
            more = self.metadata.natural("nextn_predict_layers")
        if more >= blocks:
            raise self.metadata.refuse("nextn_predict_layers", f"below {blocks} layers")
        self.layers = blocks - more
        """That the model runs through."""
        # these have no part in the logits of the next token
        self.names.leave(f"blk.{i}." for i in range(self.layers, blocks))
        self._vocabulary(values)

    def _vocabulary(self, values: Mapping[str, Any]) -> None:
        """Hold the embedding to the tokens that the file names."""
        shape = self.names.shape("token_embd.weight")
        if len(shape) != 2:
            raise CorruptCheckpointError(
                f"{self.shown}: 'token_embd.weight' has the shape {shape}, and is no"
                " matrix",
                hint="download the file again",
            )
        tokens = values.get(_TOKENS)
        named = tokens.length if isinstance(tokens, Skipped) else None
        if named is not None and named != shape[0]:
            raise CorruptCheckpointError(
                f"{self.shown} names {named} tokens and has {shape[0]} rows of"
                " 'token_embd.weight'",
                hint="take metadata and weights from the same file",
            )

    def around(
        self,
        embedding: str,
        norm: str,
        head: str = "lm_head.weight",
        change: Any = None,
    ) -> dict[str, Any]:
        """Take what stands around the layers, and say what transformers calls sizes.

        **Arguments:**

        - `embedding`, `norm`: names in transformers.
        - `change`: of the norm's weight.
        """
        vocab_size, _ = self.names.shape("token_embd.weight")
        tied = not self.names.has("output.weight")
        self.names.put(embedding, "token_embd.weight")
        self.names.put(norm, "output_norm.weight", change=change)
        self.names.put_if("lm_head.weight", "output.weight")
        return {
            "vocab_size": vocab_size,
            "hidden_size": self.metadata.integer("embedding_length"),
            "num_hidden_layers": self.layers,
            "tie_word_embeddings": tied,
        }

    def by_layer(self, key: str) -> list[int]:
        """Read a count of each layer that the model runs through."""
        return self.metadata.by_layer(key, self.blocks)[: self.layers]

    def one_of(self, key: str, counts: Sequence[int]) -> int:
        """Tell what the counts that are not 0 agree on.

        **Raises:** `CorruptCheckpointError` where they do not, or all are 0.
        """
        found = {count for count in counts if count}
        if len(found) != 1:
            raise self.metadata.refuse(key, "one size for all layers that have it")
        return found.pop()

    def agreed(self, layers: Sequence[int], tensor: str) -> bool:
        """Tell whether all these layers have a tensor, or none has.

        **Raises:** `CorruptCheckpointError` where some have it.
        """
        having = [i for i in layers if self.names.has(f"blk.{i}.{tensor}")]
        if having and len(having) < len(layers):
            lacking = next(i for i in layers if i not in having)
            raise CorruptCheckpointError(
                f"{self.shown} has {quote(f'blk.{having[0]}.{tensor}')} and no"
                f" {quote(f'blk.{lacking}.{tensor}')}",
                hint="is the file whole? A model in several needs all of them",
            )
        return bool(having)

    def heads(self, kv: int) -> tuple[int, int, int]:
        """Tell how many heads queries have, keys and values, and their size.

        **Arguments:**

        - `kv`: heads of keys and values.
        """
        count = self.metadata.integer("attention.head_count")
        width = self.metadata.integer("embedding_length")
        size = width // count
        if self.metadata.has("attention.key_length"):
            size = self.metadata.integer("attention.key_length")
        elif width % count:
            raise self.metadata.refuse("attention.head_count", f"a divisor of {width}")
        own = "values of another size than keys"
        self.metadata.demand_absent("attention.value_length", own, (size,))
        return count, kv, size

    def turning(self, size: int) -> tuple[int, float]:
        """Tell how many channels of a head of this size turn, and the base of rates.

        **Raises:** `UnsupportedCheckpointError` for positions that are scaled.
        """
        metadata, scaled = self.metadata, "positions that are scaled"
        metadata.demand_absent("rope.scaling.type", scaled, _UNTURNED)
        for key in ("rope.scaling.factor", "rope.scale_linear"):
            metadata.demand_absent(key, scaled, (0, 1))
        metadata.demand_absent("attention.sliding_window", "a window")
        count = size
        if metadata.has("rope.dimension_count"):
            count = metadata.integer("rope.dimension_count")
        if count > size or count % 2:
            raise metadata.refuse("rope.dimension_count", f"even and up to {size}")
        # llama.cpp's own, where the file has none
        theta = 10000.0
        if metadata.has("rope.freq_base"):
            theta = metadata.positive("rope.freq_base")
        return count, theta

    def mixer(self) -> dict[str, int]:
        """Read the sizes of a Mamba mixer.

        **Returns:** `inner`, `state`, `taps`, `rank`: of Mamba-2 its heads.
        """
        metadata = self.metadata
        return {
            "inner": metadata.integer("ssm.inner_size"),
            "state": metadata.integer("ssm.state_size"),
            "taps": metadata.integer("ssm.conv_kernel"),
            "rank": metadata.integer("ssm.time_step_rank"),
        }
