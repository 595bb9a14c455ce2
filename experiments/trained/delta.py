"""Networks of the delta rule: transformers' Qwen3-Next and Kimi Linear.

Every layer is a delta rule and an MLP; there is no attention and there are no experts.
Where fla can be imported, transformers takes its Triton kernels on a GPU. Without, and
on a CPU, its own torch code runs, correctly and slowly.
"""

import math
from typing import Any

import torch

from .shapes import CONV, DELTA_HEADS, KEY_HEADS, VOCABULARY, Shape


_CLASSES = {"gated_delta": "Qwen3Next", "kimi_delta": "KimiLinear"}
_IN_FILE = {"self_attn.forget_gate.": "self_attn.", ".mlp.": ".block_sparse_moe."}
"""Names in Kimi Linear's code, and in its files."""


def class_name(shape: Shape) -> str:
    """transformers' class of the network."""
    return f"{_CLASSES[shape.kind]}ForCausalLM"


def delta_config(shape: Shape) -> Any:
    """transformers' configuration of a network of this shape."""
    import transformers

    library: Any = transformers  # of which type checkers see only a part
    common: dict[str, Any] = dict(
        vocab_size=VOCABULARY,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.feed_forward,
        layer_types=["linear_attention"] * shape.layers,
        linear_conv_kernel_dim=CONV,
        max_position_embeddings=8192,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="sdpa",
        lyapunov_tokenizer="bytes",
    )
    if shape.kind == "gated_delta":
        return library.Qwen3NextConfig(
            **common,
            tie_word_embeddings=True,
            mlp_only_layers=list(range(shape.layers)),
            linear_num_key_heads=KEY_HEADS,
            linear_num_value_heads=DELTA_HEADS,
            linear_key_head_dim=shape.state,
            linear_value_head_dim=shape.state,
        )
    return library.KimiLinearConfig(
        **common,
        tie_word_embeddings=False,  # its class cannot: the file holds both
        mlp_layer_types=["dense"] * shape.layers,
        linear_num_heads=DELTA_HEADS,
        linear_head_dim=shape.state,
    )


def delta_network(shape: Shape) -> torch.nn.Module:
    """A network with initial weights that remember.

    Decays and convolutions begin as fla's layers do, and Mamba-2: transformers' own
    Qwen3-Next begins with decays of e^-6 a byte and less, and convolutions so small
    that norms drown what they let through.
    """
    import transformers

    model: Any = getattr(transformers, class_name(shape))(delta_config(shape))
    model.lm_head.weight = model.model.embed_tokens.weight
    for layer in model.model.layers:
        mixer = layer.linear_attn if shape.kind == "gated_delta" else layer.self_attn
        gate = mixer if shape.kind == "gated_delta" else mixer.forget_gate
        mixer.conv1d.reset_parameters()
        with torch.no_grad():
            gate.A_log.uniform_(1, 16).log_()
            step = gate.dt_bias.uniform_(math.log(1e-3), math.log(1e-1)).exp_()
            step.add_(torch.log(-torch.expm1(-step)))  # softplus gives the step back
    if shape.kind == "gated_delta":
        _train_by_channels()
    return model


def _train_by_channels() -> None:
    """Let Qwen3-Next train where fla refuses the gradient of its own kernel.

    fla does so on Hopper under Triton 3.4 to 3.7, whose code is wrong there. A gate of
    a head is one of all its channels, so that chunk_kda is the same function.
    """
    try:
        from fla.ops.kda import chunk_kda
    except ImportError:
        return
    from transformers.models.qwen3_next import modeling_qwen3_next as module

    own = module.torch_chunk_gated_delta_rule
    if getattr(own, "by_channels", False):
        return

    def chunk(query: Any, key: Any, value: Any, g: Any, beta: Any, **more: Any) -> Any:
        if not (torch.is_grad_enabled() and g.is_cuda):
            return own(query, key, value, g=g, beta=beta, **more)
        gates = g[..., None].expand(*g.shape, key.shape[-1])
        return chunk_kda(query, key, value, gates, beta, use_qk_l2norm_in_kernel=True)

    chunk.by_channels = True  # pyright: ignore[reportFunctionMemberAccess]
    module.torch_chunk_gated_delta_rule = chunk


def to_file(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Kimi Linear's weights under the names that transformers saves them by."""
    found: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        for theirs, saved in _IN_FILE.items():
            name = name.replace(theirs, saved)
        if name.endswith("conv1d.weight"):
            for part, third in zip("qkv", value.chunk(3), strict=True):
                found[name.replace("conv1d", f"{part}_conv1d")] = third
        else:
            found[name] = value
    return found


def from_file(
    weights: dict[str, torch.Tensor], names: list[str]
) -> dict[str, torch.Tensor]:
    """The weights of these names in Kimi Linear's code, from a file's."""
    found: dict[str, torch.Tensor] = {}
    for name in names:
        saved = name
        for theirs, one in _IN_FILE.items():
            saved = saved.replace(theirs, one)
        if saved.endswith("conv1d.weight"):
            thirds = [weights[saved.replace("conv1d", f"{p}_conv1d")] for p in "qkv"]
            found[name] = torch.cat(thirds)
        else:
            found[name] = weights[saved]
    return found
