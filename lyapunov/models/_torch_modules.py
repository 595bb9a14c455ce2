"""Which torch modules are whole models, and which lack a head or are a part of one."""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._errors import CheckpointError, CorruptCheckpointError, UsageError
from ..checkpoints import Checkpoint, NetworkLayout, recognise
from ..checkpoints.files._files import quote


WANTED = "give a model of transformers, PEFT or mamba_ssm"


def is_of_transformers(module) -> bool:
    """Whether it is a whole model of transformers, with or without a head."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(module, transformers.PreTrainedModel)


def recognised(checkpoint: Checkpoint, module) -> NetworkLayout:
    """The layout, or an error that speaks of the module and not of files."""
    try:
        return recognise(checkpoint)
    except CheckpointError as error:
        told = error.message.replace("config.json", "its config")
        hint = error.hint.replace("config.json", "its config")
        if isinstance(error, CorruptCheckpointError):
            hint = f"the tensors are not those of its config; {WANTED}, as it was made"
        raise type(error)(f"{checkpoint.source}: {told}", hint=hint) from None


def refuse_a_part(module) -> None:
    """Refuse a mixer or a block, which has the config of the whole.

    **Raises:** `UsageError`.
    """
    whole = is_of_transformers(module) or not hasattr(module.config, "to_json_string")
    if not whole:
        kind = type(module).__name__
        raise UsageError(
            f"{quote(kind)} is a part of a model",
            hint="give the whole model; check(..., layers=[0]) looks at its first "
            "sublayer alone, and lyapunov_spectrum at a recurrence of your own",
        )


def is_backbone(module) -> bool:
    """Whether it is the model without what a task puts on top of it."""
    return is_of_transformers(module) and module.base_model is module


def as_in_a_whole(
    module, tensors: dict[str, Any], source: str, embedding: Any
) -> dict[str, Any]:
    """A backbone's tensors under the names that they have in a model with a head.

    Where the head is not the embedding, something in its place says that there is none.

    **Arguments:**

    - `embedding`: the tensor of it, with `dtype` and `shape`.
    """
    prefix = f"{module.base_model_prefix}."
    found = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    if not getattr(module.config, "tie_word_embeddings", True):
        name = "embed_out" if module.config.model_type == "gpt_neox" else "lm_head"
        found[f"{name}.weight"] = NoHead(embedding.dtype, embedding.shape, source)
    return found


@dataclass(frozen=True, eq=False)
class NoHead:
    """In the place of the head that a model does not have: no element of it is there.

    **Arguments:**

    - `dtype`, `shape`: those that it would have.
    """

    dtype: str
    shape: tuple[int, ...]
    source: str
    size: int = 0

    def read(self) -> np.ndarray:
        """**Raises:** `UsageError`, always."""
        raise UsageError(
            f"{self.source} has no head, so that there are no logits",
            hint="check(model, tokens) bounds the sublayers, emulated, and gives the "
            "exponents, trace(model, tokens) what each sublayer did; for logits give "
            "the whole model, such as AutoModelForCausalLM makes",
        )

    def read_rows(self, start, stop: int | None = None) -> np.ndarray:
        """**Raises:** `UsageError`, always."""
        return self.read()
