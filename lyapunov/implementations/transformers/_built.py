"""transformers' networks in memory, as it loads a folder or made of weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..._errors import MissingExtraError, UsageError
from ...checkpoints import NetworkLayout
from ...checkpoints._network import Part
from ...formats._precision import Precision
from ...models import Model
from ...sublayers.config import plain_mamba1
from .._torch import NAMES, exact_sums, import_torch, state_dict, torch_dtype
from .implementation import TransformersImplementation


def _imported(device: str) -> tuple[Any, Any]:
    """torch and transformers.

    **Raises:** `MissingExtraError` without one of them; `UsageError` without a GPU.
    """
    torch = import_torch()
    if device != "cpu":
        if not torch.cuda.is_available():
            raise UsageError(
                "this needs an NVIDIA GPU, and torch sees none",
                hint="--measure transformers runs on the CPU",
            )
        exact_sums(torch)
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            f"measuring with transformers needs it installed ({error})",
            hint=TransformersImplementation.install_hint(),
        ) from None
    return torch, transformers


def from_folder(model: Model, precision: str, device: str = "cpu") -> tuple[Any, Any]:
    """torch, and the network as transformers loads its folder.

    **Raises:** `UsageError` for a checkpoint that transformers does not read.
    """
    torch, transformers = _imported(device)
    if model.checkpoint is not None and model.checkpoint.is_gguf:
        raise UsageError(
            f"{model.source} is a GGUF file, of which transformers runs no network of"
            f" {model.layout.architecture} here",
            hint="--measure emulated, or the checkpoint that it was made from",
        )
    if not Path(model.source).is_dir():
        raise UsageError(
            f"{model.source} is no folder that transformers could load",
            hint="download it first, or --measure emulated",
        )
    try:
        network: Any = transformers.AutoModelForCausalLM.from_pretrained(
            model.source,
            dtype=torch_dtype(torch, precision),
            attn_implementation="eager",
            experts_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, ImportError, _strict()) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"transformers does not load {model.source}: {reason}",
            hint="--measure emulated",
        ) from None
    return torch, network.to(device).eval()


def _strict() -> type[Exception]:
    """What a configuration's class raises of a value that it does not know."""
    import huggingface_hub.errors

    return getattr(huggingface_hub.errors, "StrictDataclassError", ValueError)


def from_weights(model: Model, precision: str, device: str = "cpu") -> tuple[Any, Any]:
    """torch, and a network of plain Mamba-1, whatever layout its weights came in."""
    torch, transformers = _imported(device)
    config = model.config
    sizes = plain_mamba1(config)
    settings = transformers.MambaConfig(
        vocab_size=config.padded_vocab_size,
        hidden_size=config.d_model,
        state_size=sizes.d_state,
        num_hidden_layers=config.n_layers,
        layer_norm_epsilon=config.norm_epsilon,
        expand=sizes.d_inner // config.d_model,
        conv_kernel=sizes.d_conv,
        time_step_rank=sizes.dt_rank,
        use_bias=sizes.proj_bias,
        use_conv_bias=sizes.conv_bias,
        residual_in_fp32=config.residual_in_fp32,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        network = transformers.MambaForCausalLM(settings)
    amp = Precision.named(precision).autocast
    dtype = torch_dtype(torch, "fp32" if amp else precision)
    state = {
        name: torch.tensor(array, device=device).to(dtype)
        for name, array in state_dict(model, "backbone.embeddings.weight")
    }
    network.load_state_dict(state, assign=True, strict=True)
    return torch, network.eval()


def parts_of(model: Model) -> Sequence[Mapping[str, Part]]:
    """For each sublayer the stored name of each parameter in transformers' network."""
    if plain_mamba1(model.config) is None:
        layout = model.layout
        assert isinstance(layout, NetworkLayout)
        return layout.parts
    return [
        {key: Part(f"backbone.layers.{i}.{name}", ()) for key, name in NAMES.items()}
        for i in range(model.config.n_layers)
    ]
