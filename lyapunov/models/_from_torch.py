"""A live torch model as a `Model`: nothing is written, nothing is changed.

The module's tensors take the place of a file's, under the names that the module's own
`save_pretrained` would write, and pass through the same recognisers.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np

from .._errors import UnsupportedCheckpointError, UsageError
from ..checkpoints import Checkpoint, NetworkLayout
from ..checkpoints._adapter import Adapter, adapted
from ..checkpoints._adapter_settings import MERGE, refuse_other_kinds, scaling
from ..checkpoints.files._files import quote
from ..checkpoints.files._tensors import DTYPES, StoredTensor
from ..checkpoints.quantised._recognise import refuse_quantised_module
from . import Model
from ._torch_modules import (
    WANTED,
    as_in_a_whole,
    is_backbone,
    is_of_transformers,
    recognised,
    refuse_a_part,
)


_GATHER = "gather its parameters first, or give the module before it is wrapped"

# torch's names of types, which are NumPy's, and the report's
_DTYPES = {f"torch.{dtype.name}": name for name, dtype in DTYPES.items()}
_BASE = ".base_layer."
_PREFIX = "base_model.model."


def from_torch(module) -> Model:
    """Take a live torch module as a model; its weights are read as they are needed.

    Each tensor is copied to the host when it is asked for, in its own type (bf16
    included), so a model on a device costs the host one layer. Nothing in the module
    changes, and nothing runs in it. Weights that are trained further are read as they
    are by then: take a new `Model` for a new state.

    **Arguments:**

    - `module`: a model of transformers of any family that `load` reads, with its head
      or without (then sublayers are bounded and there are no logits); one that PEFT
      wraps (its LoRA adapter is merged in fp64, W + s B A, while it is read); or
      mamba_ssm's `MambaLMHeadModel`. DistributedDataParallel and `torch.compile` are
      looked through.

    **Returns:** a `Model`, whose `logits` are those of `load` on what
    `save_pretrained` writes.

    **Raises:** `UsageError` for what is no such module, or a part of one;
    `UnsupportedCheckpointError` for a family, an adapter or a quantisation that is not
    covered, and for weights that are not there (meta device, offloaded, sharded).
    """
    module = _unwrapped(module)
    wrapped, peft = _peft(module)
    config = _config(wrapped)
    refuse_quantised_module(config)
    source = _name(wrapped)
    refuse_a_part(wrapped)
    _refuse_rescaled(wrapped)
    if peft is not None:
        _adapter_in_force(peft, source)
    tensors = _tensors(wrapped, source)
    if peft is None and is_backbone(wrapped):
        embedding = _live(wrapped.get_input_embeddings().weight)
        tensors = as_in_a_whole(wrapped, tensors, source, embedding)
    checkpoint = Checkpoint(
        source=source,
        revision=None,
        config=config,
        files=(),
        folder=Path(),
        tensors=cast(dict[str, StoredTensor], tensors),
    )
    layout = recognised(checkpoint, wrapped)
    if peft is not None:
        layout = _with_adapter(layout, tensors, peft, source)
    return Model(layout, source)


@dataclass(frozen=True, eq=False)
class LiveTensor:
    """A torch tensor as a checkpoint's: two are equal where their memory is the same.

    **Arguments:**

    - `tensor`: detached; its memory is the module's.
    - `dtype`: a key of `DTYPES`, or torch's own name for another type.
    """

    tensor: Any = field(repr=False)
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def _place(self) -> tuple:
        t = self.tensor
        return str(t.device), t.data_ptr(), self.dtype, self.shape, t.stride()

    def __eq__(self, other) -> bool:
        return isinstance(other, LiveTensor) and self._place() == other._place()

    def __hash__(self) -> int:
        return hash(self._place())

    def read(self) -> np.ndarray:
        """A copy of the whole tensor, in its own type."""
        return copied(self.tensor)

    def read_rows(self, start, stop: int | None = None) -> np.ndarray:
        """Rows `start` to `stop` of axis 0, or the rows that an array names."""
        if stop is not None:
            if not 0 <= start <= stop <= self.shape[0]:
                raise IndexError(
                    f"rows {start} to {stop} of a tensor of {self.shape[0]} rows"
                )
            return copied(self.tensor[int(start) : int(stop)])
        rows = np.asarray(start)
        if rows.size and not (rows.min() >= 0 and rows.max() < self.shape[0]):
            raise IndexError(f"a row beyond a tensor of {self.shape[0]} rows")
        # looked up where the tensor lies, so that a device sends these rows alone
        index = self.tensor.new_tensor(rows.reshape(-1).tolist(), dtype=_torch().int64)
        found = copied(self.tensor.index_select(0, index))
        return found.reshape(*rows.shape, *self.shape[1:])


def _torch():
    """torch, which is loaded wherever a module of it is."""
    return sys.modules["torch"]


def copied(tensor) -> np.ndarray:
    """The values on the host, in the tensor's own type, in memory of their own."""
    torch = _torch()
    # clone, since numpy() of a tensor on the host shares its memory
    held = tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
    if held.dtype == torch.bfloat16:
        return held.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return held.numpy()


def _unwrapped(module):
    """What lies inside DistributedDataParallel and torch.compile, once it is sound."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(module, torch.nn.Module):
        raise UsageError(
            f"from_torch was given {quote(type(module).__name__)}, no torch module",
            hint=f"{WANTED}; for a path or a Hub id: lyapunov.load",
        )
    for _ in range(8):
        inner = getattr(module, "_orig_mod", None)
        if inner is None and type(module).__name__ in (
            "DistributedDataParallel",
            "DataParallel",
        ):
            inner = module.module
        if inner is None:
            break
        module = inner
    return module


def _peft(module):
    """The model inside, and PEFT's wrapper where its adapter is in force."""
    if not hasattr(module, "peft_config") or not hasattr(module, "get_base_model"):
        return module, None
    base = module.get_base_model()
    layers = _lora_layers(base)
    merged = [bool(layer.merged) for layer in layers]
    off = [bool(layer.disable_adapters) for layer in layers]
    if any(merged) != all(merged) or any(off) != all(off):
        raise UnsupportedCheckpointError(
            "some layers' adapters are merged or switched off, others' are not",
            hint=MERGE,
        )
    if any(merged) and any(hasattr(m, "modules_to_save") for m in base.modules()):
        raise UnsupportedCheckpointError(
            "an adapter that is merged beside modules that it replaces", hint=MERGE
        )
    # merged into the weights, or out of use: the weights are the model
    return base, module if layers and not any(merged) and not any(off) else None


def _lora_layers(base) -> list[Any]:
    return [m for m in base.modules() if hasattr(m, "lora_A") and hasattr(m, "merged")]


def _refuse_rescaled(module) -> None:
    """RWKV divides its weights in its first forward pass in eval mode."""
    inside = getattr(module, "rwkv", module)
    every = getattr(module.config, "rescale_every", 0)
    if getattr(inside, "layers_are_rescaled", False) and every > 0:
        raise UsageError(
            "a forward pass has divided weights of this network (rescale_every)",
            hint="one in train() takes it back, or lyapunov.load its folder",
        )


def _config(module) -> dict[str, Any]:
    """config.json as the module's library would write it."""
    config = getattr(module, "config", None)
    if hasattr(config, "to_json_string"):  # transformers
        return json.loads(cast(Any, config).to_json_string())
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        found = dataclasses.asdict(config)  # mamba_ssm's MambaConfig
    elif isinstance(config, dict):
        found = config
    else:
        found = None
    if not found:
        raise UsageError(
            f"{quote(type(module).__name__)} has no config that says what it is",
            hint=WANTED,
        )
    return json.loads(json.dumps(found))


def _name(module) -> str:
    path = getattr(module.config, "_name_or_path", "") or ""
    kind = type(module).__name__
    return f"{kind} in memory ({path})" if path else f"{kind} in memory"


def _tensors(module, source: str) -> dict[str, LiveTensor]:
    """The module's tensors under the names that it is saved with."""
    held = {
        name.replace(_BASE, "."): tensor
        for name, tensor in module.state_dict().items()
        if not _of_adapter(name)
    }
    replaced = {name for name in held if ".modules_to_save." in name}
    if replaced:
        held = {
            name.replace(".original_module.", "."): tensor
            for name, tensor in held.items()
            if name not in replaced
        }
    _refuse_absent(held.items(), source)
    if is_of_transformers(module):
        from transformers.core_model_loading import revert_weight_conversion
        from transformers.modeling_utils import remove_tied_weights_from_state_dict

        ignored = module._keys_to_ignore_on_save or ()
        held = {name: t for name, t in held.items() if name not in ignored}
        held = remove_tied_weights_from_state_dict(held, module)
        held = revert_weight_conversion(module, held)
    return {name: _live(tensor) for name, tensor in held.items()}


def _of_adapter(name: str) -> bool:
    return any(part in name for part in (".lora_", ".lora_embedding_"))


def _refuse_absent(held: Iterable[tuple[str, Any]], source: str) -> None:
    """Refuse weights that are not in this process's memory."""
    for name, tensor in held:
        if not isinstance(tensor, _torch().Tensor):
            continue
        if tensor.device.type == "meta":
            raise UnsupportedCheckpointError(
                f"{quote(name)} of {source} has no values (meta device)",
                hint="load the weights onto a device first, without offloading",
            )
        if hasattr(tensor, "full_tensor") or (
            tensor.numel() == 0 and hasattr(tensor, "ds_shape")
        ):
            raise UnsupportedCheckpointError(
                f"{quote(name)} of {source} is spread over processes", hint=_GATHER
            )


def _live(tensor) -> LiveTensor:
    name = str(tensor.dtype)
    return LiveTensor(
        tensor.detach(),
        _DTYPES.get(name, name.removeprefix("torch.")),
        tuple(tensor.shape),
    )


def _adapter_in_force(peft, source: str) -> tuple[str, dict[str, Any]]:
    """Its name and settings; other kinds than plain LoRA are refused."""
    names = list(peft.active_adapters)
    if len(names) != 1:
        raise UnsupportedCheckpointError(
            f"{len(names)} adapters are in force in {source}; one is covered",
            hint=MERGE,
        )
    (name,) = names
    told = peft.peft_config[name].to_dict()
    plain = lambda value: sorted(value) if isinstance(value, set) else str(value)
    settings = json.loads(json.dumps(told, default=plain))
    refuse_other_kinds(settings)
    return name, settings


def _with_adapter(
    layout: NetworkLayout, tensors: dict[str, LiveTensor], peft, source: str
) -> NetworkLayout:
    """The base with the adapter in force merged in as it is read."""
    from peft import get_peft_model_state_dict

    name, settings = _adapter_in_force(peft, source)
    _same_scalings(peft, name, settings)
    saved = get_peft_model_state_dict(
        peft, adapter_name=name, save_embedding_layers=False
    )
    places = _renamed(peft.get_base_model(), tensors)
    live = {}
    for stored, tensor in saved.items():
        inner = stored.removeprefix(_PREFIX)
        module = inner.partition(".lora_")[0]
        place = places.get(module, module)
        live[f"{_PREFIX}{place}{inner[len(module) :]}"] = _live(tensor)
    adapter = Adapter(source, settings, cast(dict[str, StoredTensor], live), ())
    return adapted(layout, adapter)


def _renamed(base, tensors: dict[str, LiveTensor]) -> dict[str, str]:
    """Modules with an adapter whose weight is saved under another name."""
    saved = {tensor: name for name, tensor in tensors.items()}
    found = {}
    for name, module in base.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer"):
            stored = saved.get(_live(module.get_base_layer().weight))
            if stored is not None:
                found[name] = stored.removesuffix(".weight")
    return found


def _same_scalings(peft, name: str, settings: dict[str, Any]) -> None:
    """Refuse an adapter whose strength was changed after it was made."""
    for path, layer in peft.get_base_model().named_modules():
        live = getattr(layer, "scaling", None)
        if not hasattr(layer, "lora_A") or not live or name not in live:
            continue
        expected = scaling(settings, path)[1]
        if not math.isclose(live[name], expected, rel_tol=1e-12):
            raise UnsupportedCheckpointError(
                f"the adapter on {quote(path)} has strength {live[name]:g};"
                f" its settings say {expected:g}",
                hint=MERGE,
            )
