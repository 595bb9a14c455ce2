"""Checkpoints as torch networks whose projections an adapter can reach.

mamba_ssm and transformers hand the weights of some of Mamba's projections to a kernel
and never call the module: whatever an adapter adds there is left out, without a word,
and gets no gradient. Which ones (mamba_ssm 2.3.2, transformers 5.23):

- Mamba-1, fused path: all but in_proj; of mamba_ssm, in_proj, too.
- Mamba-1, other path: dt_proj; of mamba_ssm, in_proj, too.
- Mamba-2, fused path: out_proj.

Here Mamba-2 takes the path that is not fused, and Mamba-1's mixers get a forward of
their own that calls every projection, then the same two kernels (`forward_mamba1`).
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F

from experiments.trained.delta import to_file
from experiments.trained.networks import fresh
from experiments.trained.shapes import Shape

from .plan import not_loaded, settings_of


METHODS = ("full", "lora-all", "lora-some")
# What `lora-some` adapts: transformers' documented example for Mamba without its
# embeddings' partner, the head; peft's own choice for GPT-NeoX.
_SOME = {
    "mamba1": ("x_proj", "embeddings", "embedding", "in_proj", "out_proj"),
    "mamba2": ("embeddings", "embedding", "in_proj", "out_proj"),
    "gpt_neox": ("query_key_value",),
}
_ALL = {
    "mamba1": ("in_proj", "x_proj", "dt_proj", "out_proj"),
    "mamba2": ("in_proj", "out_proj"),
    "gpt_neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
}


def reference_conv(x: Any, weight: Any, bias: Any, activation: str) -> torch.Tensor:
    """What causal_conv1d computes: x batch x channels x length."""
    if activation != "silu":
        raise ValueError(f"{activation} is not a convolution's activation here")
    length = x.shape[-1]
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    width = weight.shape[-1]
    out = F.conv1d(x, weight[:, None], bias, padding=width - 1, groups=x.shape[1])
    return F.silu(out[..., :length])


def reference_scan(
    u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, delta_bias: Any
) -> torch.Tensor:
    """What mamba_ssm's selective_scan_fn computes, in fp32, a step at a time."""
    x, dt = u.float(), F.softplus(delta.float() + delta_bias[:, None])
    # length first: a step reads what lies together
    steps = [one.movedim(-1, 0).contiguous() for one in (dt, dt * x, B, C)]
    state, outputs = torch.zeros((), device=x.device), []
    for rate, inflow, b, c in zip(*steps, strict=True):
        decay = torch.exp(rate[..., None] * A)
        state = decay * state + inflow[..., None] * b.float()[:, None]
        outputs.append((state * c.float()[:, None]).sum(-1))
    y = torch.stack(outputs, -1) + x * D[:, None]
    return (y * F.silu(z.float())).to(u.dtype)


def _kernels(cuda: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The convolution and the scan of Mamba-1."""
    if not cuda:
        return reference_conv, reference_scan
    causal_conv1d: Any = __import__("causal_conv1d")
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def scan(u, delta, A, B, C, D, z, delta_bias):
        return selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, True)

    return causal_conv1d.causal_conv1d_fn, scan


def forward_mamba1(mixer: Any, hidden: torch.Tensor, *_: Any, **__: Any) -> Any:
    """A Mamba-1 mixer that calls all its projections; hidden: batch x length x width.

    As mamba_ssm's forward without its fused path: in_proj, convolution, x_proj,
    dt_proj, scan with dt's bias in fp32, out_proj.
    """
    conv, scan = _kernels(hidden.is_cuda)
    x, z = mixer.in_proj(hidden).transpose(1, 2).contiguous().chunk(2, dim=1)
    x = conv(x, mixer.conv1d.weight[:, 0], mixer.conv1d.bias, activation="silu")
    sizes = [mixer.dt_rank, mixer.d_state, mixer.d_state]
    dt, B, C = mixer.x_proj(x.transpose(1, 2)).split(sizes, dim=-1)
    dt = mixer.dt_proj(dt).transpose(1, 2).contiguous()
    B, C = B.transpose(1, 2).contiguous(), C.transpose(1, 2).contiguous()
    A = -torch.exp(mixer.A_log.float())
    y = scan(x, dt, A, B, C, mixer.D.float(), z, mixer.dt_bias.float())
    return mixer.out_proj(y.transpose(1, 2))


def _open(model: torch.nn.Module) -> None:
    """Let adapters reach every projection of the Mamba mixers.

    dt_proj's bias is added within the scan, in fp32: the mixer takes it over, so that
    dt_proj can be called.
    """
    for module in list(model.modules()):
        kind = type(module).__name__
        mixer: Any = module
        if kind in ("Mamba", "MambaMixer"):
            mixer.dt_bias = mixer.dt_proj.bias
            mixer.dt_proj.bias = None
            if kind == "MambaMixer":
                mixer.dt_rank, mixer.d_state = (
                    mixer.time_step_rank,
                    mixer.ssm_state_size,
                )
            mixer.forward = MethodType(forward_mamba1, mixer)
        elif kind == "Mamba2":
            mixer.use_mem_eff_path = False


class Tuned(torch.nn.Module):
    """A causal language model to be fine-tuned: ids, batch x length, to logits.

    - `kind`: "mamba1", "mamba2" or "gpt_neox"; it decides what LoRA adapts.
    - `encode`: text to ids.
    - `save`: writes the weights as a checkpoint that `lyapunov.load` takes, or None.
    - `opened`: whether adapters are to reach every projection; without, the library's
      own forward is left, which is faster.
    """

    def __init__(
        self,
        inner: torch.nn.Module,
        kind: str,
        encode: Callable[[str], list[int]],
        save: Callable[[dict[str, torch.Tensor], Path], None] | None = None,
        opened: bool = True,
    ) -> None:
        super().__init__()
        if opened:
            _open(inner)
        settings: Any = inner.config
        if hasattr(settings, "use_cache"):  # of transformers: nothing is generated
            settings.use_cache = False
        self.inner = inner
        self.kind = kind
        self.encode = encode
        self.save = save

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of the next token, in whatever format the head gives."""
        return self.inner(ids).logits


def deterministic() -> None:
    """Let the GPU add in one order where the libraries can; before any network is made.

    mamba_ssm then compiles one configuration of each kernel, too, where it would time
    a dozen. Its scan of Mamba-1 adds in no fixed order all the same.
    """
    os.environ.setdefault("MAMBA_DETERMINISTIC", "1")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # a property of the module's class, which a type checker does not see
    settings: Any = torch.utils.deterministic
    settings.fill_uninitialized_memory = False


def load(name: str, device: torch.device) -> Tuned:
    """A checkpoint: one of experiments/models, or any that the libraries know.

    fp32, in evaluation, without adapters.

    **Raises:**

    Problem if there is no such model, or its tokenizer is not there.
    """
    settings = settings_of(name)
    if settings is not None:
        return _own(Path(name), settings, device)
    try:
        return _library(name, device)
    except (OSError, ValueError) as error:
        raise not_loaded(name, error) from error


def _own(folder: Path, settings: dict[str, Any], device: torch.device) -> Tuned:
    from safetensors.torch import load_file, save_file

    network = fresh(shape(settings), 0.0, device)
    network.restore(load_file(folder / "model.safetensors"))
    network.eval()

    def save(weights: dict[str, torch.Tensor], where: Path) -> None:
        where.mkdir(parents=True, exist_ok=True)
        if network.shape.kind == "kimi_delta":
            weights = to_file(weights)
        own = {
            _stored_name(name, network.shape.kind): value.contiguous()
            for name, value in weights.items()
        }
        save_file(own, where / "model.safetensors")
        (where / "config.json").write_text(json.dumps(settings))

    kind = network.shape.kind
    return Tuned(network.inner, kind, lambda text: list(text.encode()), save)


def _stored_name(name: str, kind: str) -> str:
    """A tensor's name in the checkpoint: what `_open` moved is where it was."""
    if kind == "mamba1":
        name = name.replace("mixer.dt_bias", "mixer.dt_proj.bias")
    return name.replace("backbone.embeddings.", "backbone.embedding.")


_KINDS = {
    "gpt_neox": ("gpt_neox", None),
    "qwen3_next": ("gated_delta", "linear_key_head_dim"),
    "kimi_linear": ("kimi_delta", "linear_head_dim"),
}
"""By model_type: the kind, and what config.json calls the state."""


def shape(settings: dict[str, Any]) -> Shape:
    """The sizes in the config.json of one of our own checkpoints."""
    if (model_type := settings.get("model_type")) in _KINDS:
        kind, state = _KINDS[model_type]
        return Shape(
            kind,
            settings["hidden_size"],
            settings["num_hidden_layers"],
            settings[state] if state else 0,
            settings["intermediate_size"],
        )
    ssm = settings["ssm_cfg"]
    kind = ssm["layer"].lower()
    if settings.get("attn_layer_idx"):
        hidden = settings["d_intermediate"]
        sizes = (settings["d_model"], settings["n_layer"], ssm["d_state"], hidden)
        return Shape("hybrid", *sizes)
    return Shape(kind, settings["d_model"], settings["n_layer"], ssm["d_state"])


def _library(name: str, device: torch.device) -> Tuned:
    """A checkpoint with a tokenizer: mamba_ssm's own layout, or transformers'."""
    import transformers

    if name.startswith("state-spaces/") and not name.endswith("-hf"):
        from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

        inner: Any = MambaLMHeadModel.from_pretrained(name, dtype=torch.float32)
        tokenizer = "EleutherAI/gpt-neox-20b"
        kind = "mamba2" if inner.config.ssm_cfg.get("layer") == "Mamba2" else "mamba1"
    else:
        make = transformers.AutoModelForCausalLM
        inner = make.from_pretrained(name, dtype=torch.float32)
        tokenizer, known = name, {"mamba": "mamba1"}
        kind = known.get(inner.config.model_type, str(inner.config.model_type))
    encode = transformers.AutoTokenizer.from_pretrained(tokenizer)
    return Tuned(
        inner.to(device).eval(),
        kind,
        lambda text: encode(text, add_special_tokens=False)["input_ids"],
    )


def adapt(network: Tuned, method: str, rank: int, alpha: int) -> torch.nn.Module:
    """The network with what `method` trains, and nothing else, asking for gradients.

    LoRA is peft's. It wraps the module, not transformers' model: there peft refuses
    out_proj of Mamba, whose path in transformers passes the adapter by.
    """
    if method == "full":
        return network.requires_grad_(True)
    import peft

    targets = (_ALL if method == "lora-all" else _SOME).get(network.kind)
    if targets is None:
        chosen: Any = "all-linear"
    else:
        ends = tuple(f".{target}" for target in targets)
        chosen = [name for name, _ in network.named_modules() if name.endswith(ends)]
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=chosen
    )
    return peft.get_peft_model(network, config)  # pyright: ignore[reportArgumentType]
