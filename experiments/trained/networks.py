"""The networks in torch: mamba_ssm's own classes, or transformers'.

On an NVIDIA GPU the Mambas are mamba_ssm's, with its kernels. On a CPU, where these
cannot run, Mamba-1 and Mamba-2 are transformers' networks of the same shape; there is
no Mamba-3 there, and the hybrid is `hybrid.py`'s. GPT-NeoX and the delta rules
(`delta.py`) are transformers' everywhere. Whatever runs, `stored` and `restore` speak
the layout of the finished checkpoint: mamba_ssm's for the Mambas and the hybrid,
transformers' for the others.
"""

import math
import sys
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from studies.problems import Problem

from .delta import delta_network, from_file, to_file
from .hybrid import Hybrid, with_attention
from .shapes import ATTENTION_HEADS, VOCABULARY, Shape


_LAYER = {
    "mamba1": "Mamba1",
    "mamba2": "Mamba2",
    "mamba3": "Mamba3",
    "hybrid": "Mamba2",
}
_CHUNK3 = 64  # Mamba-3's chunk, as its authors recommend
_CONFIGURATIONS = 3  # that Triton tries of each kernel; all would take minutes


def mamba_ssm_config(shape: Shape) -> dict[str, Any]:
    """config.json of a Mamba in mamba_ssm's layout."""
    ssm: dict[str, Any] = {"layer": _LAYER[shape.kind], "d_state": shape.state}
    if shape.kind != "mamba1":
        ssm["headdim"] = shape.head_dim
    if shape.kind == "mamba3":
        ssm["chunk_size"] = _CHUNK3
    pure = {
        "d_model": shape.width,
        "d_intermediate": 0,
        "n_layer": shape.layers,
        "vocab_size": VOCABULARY,
        "ssm_cfg": ssm,
        "attn_layer_idx": [],
        "attn_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 8,
        "tie_embeddings": True,
    }
    return with_attention(pure, shape) if shape.kind == "hybrid" else pure


class Network(torch.nn.Module):
    """A causal language model over bytes, called alike whichever library made it.

    Forward: ids, batch x length, to `.logits`, batch x length x 256. On a GPU it runs
    under bf16 autocast, on a CPU in fp32.

    - `shape`: its sizes.
    - `library`: "mamba_ssm", "transformers", or "torch" of the hybrid on a CPU.
    """

    def __init__(self, inner: torch.nn.Module, shape: Shape, library: str) -> None:
        super().__init__()
        self.inner = inner
        self.shape = shape
        self.library = library

    def forward(self, ids: torch.Tensor, use_cache: bool = False) -> Any:
        """Logits for the byte after each position."""
        extra = {"use_cache": use_cache} if self.library == "transformers" else {}
        cuda = ids.device.type == "cuda"
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=cuda):
            return SimpleNamespace(logits=self.inner(ids, **extra).logits)

    def stored(self) -> dict[str, torch.Tensor]:
        """Copies of the weights, fp32, on the CPU, named as in the checkpoint."""
        found = {
            _name(name, self.shape.kind, self.library): value.detach()
            .to("cpu", torch.float32, copy=True)
            .contiguous()
            for name, value in self.inner.state_dict().items()
        }
        return to_file(found) if self.shape.kind == "kimi_delta" else found

    def restore(self, weights: dict[str, torch.Tensor]) -> None:
        """Take the weights of a checkpoint."""
        own = self.inner.state_dict()
        if self.shape.kind == "kimi_delta":
            weights = from_file(weights, list(own))
        self.inner.load_state_dict(
            {name: weights[_name(name, self.shape.kind, self.library)] for name in own}
        )


def _name(name: str, kind: str, library: str) -> str:
    """A tensor's name in the checkpoint; transformers' Mambas differ in one."""
    if kind in _LAYER and library == "transformers":
        return name.replace("backbone.embeddings.", "backbone.embedding.")
    return name


def fresh(shape: Shape, dropout: float, device: torch.device) -> Network:
    """A network with initial weights from torch's generator, made on the CPU.

    `dropout`: of elements of every sublayer's output, while training.
    """
    if shape.kind == "gpt_neox":
        network = Network(_gpt_neox(shape, dropout), shape, "transformers")
    elif shape.kind in ("gated_delta", "kimi_delta"):
        network = Network(delta_network(shape), shape, "transformers")
        if device.type == "cuda":
            try_few(_CONFIGURATIONS)
    elif device.type == "cuda":
        network = Network(_of_mamba_ssm(shape), shape, "mamba_ssm")
    elif shape.kind == "hybrid":
        network = Network(Hybrid(shape), shape, "torch")
    else:
        network = Network(_of_transformers(shape), shape, "transformers")
    if shape.kind != "gpt_neox" and dropout:
        _drop(network, dropout)
    return network.to(device)


def _drop(network: Network, probability: float) -> None:
    """Drop elements of every mixer's and MLP's output while training."""

    def hook(part: torch.nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        return F.dropout(output, probability, part.training)

    inner: Any = network.inner
    blocks = inner.model if hasattr(inner, "model") else inner.backbone
    for layer in blocks.layers:
        for name in ("mixer", "linear_attn", "self_attn", "mlp"):
            if getattr(layer, name, None) is not None:
                getattr(layer, name).register_forward_hook(hook)


def _gpt_neox(shape: Shape, dropout: float) -> torch.nn.Module:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(gpt_neox_config(GPTNeoXConfig, shape, dropout))


def gpt_neox_config(make: Any, shape: Shape, dropout: float = 0.0) -> Any:
    """The configuration of a GPT-NeoX of this shape: as Pythia's, but tied."""
    return make(
        vocab_size=VOCABULARY,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=ATTENTION_HEADS,
        intermediate_size=shape.feed_forward,
        hidden_dropout=dropout,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="sdpa",
        lyapunov_tokenizer="bytes",
    )


def _of_transformers(shape: Shape) -> torch.nn.Module:
    if shape.kind == "mamba3":
        raise Problem(
            "Mamba-3 runs on an NVIDIA GPU only",
            "use --device cuda, with mamba_ssm installed, or another --kind",
        )
    import transformers

    common: dict[str, Any] = dict(
        vocab_size=VOCABULARY,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        state_size=shape.state,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    if shape.kind == "mamba1":
        return transformers.MambaForCausalLM(transformers.MambaConfig(**common))
    return transformers.Mamba2ForCausalLM(
        transformers.Mamba2Config(
            **common,
            num_heads=shape.inner // shape.head_dim,
            head_dim=shape.head_dim,
            n_groups=1,
            chunk_size=256,
        )
    )


def _of_mamba_ssm(shape: Shape) -> torch.nn.Module:
    try:
        from mamba_ssm.models.config_mamba import MambaConfig
        from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
        from mamba_ssm.modules.mamba3 import Mamba3
    except ImportError as error:
        raise Problem(
            f"mamba_ssm cannot be imported ({error})",
            "install mamba_ssm and causal_conv1d, or use --device cpu",
        ) from error
    settings = mamba_ssm_config(shape)
    if shape.kind == "mamba3":
        # MambaLMHeadModel makes Mamba-1 and 2 mixers alone: put the others in place.
        model = MambaLMHeadModel(MambaConfig(**{**settings, "ssm_cfg": {}}))
        own = {k: v for k, v in settings["ssm_cfg"].items() if k != "layer"}
        for i, block in enumerate(model.backbone.layers):
            block.mixer = Mamba3(shape.width, layer_idx=i, **own)
            with torch.no_grad():  # as MambaLMHeadModel scales what ends a branch
                block.mixer.out_proj.weight /= math.sqrt(shape.layers)
    else:
        model = MambaLMHeadModel(MambaConfig(**settings))
    try_few(_CONFIGURATIONS)
    return model


def try_few(most: int) -> None:
    """Let Triton choose among `most` configurations of each of the libraries' kernels.

    It compiles each one that it tries: some hundred of Mamba-3's, one after the other,
    and of fla's but one, which has twice as many kernels. Four warps, few stages and no
    limit on registers are tried first.
    """
    from triton.runtime.autotuner import Autotuner

    def effort(configuration: Any) -> tuple[bool, int, int]:
        limited = getattr(configuration, "maxnreg", None) is not None
        return limited, abs(configuration.num_warps - 4), configuration.num_stages

    for name, module in list(sys.modules.items()):
        if name.startswith(("mamba_ssm.ops.triton", "fla.")):
            tried = 1 if name.startswith("fla.") else most
            for kernel in vars(module).values():
                while kernel is not None and not isinstance(kernel, Autotuner):
                    kernel = getattr(kernel, "fn", None)
                if kernel is not None:
                    kernel.configs = sorted(kernel.configs, key=effort)[:tried]
