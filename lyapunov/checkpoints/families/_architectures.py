"""Which families are covered, in which layouts, and what of each is not."""

from typing import Any, NamedTuple


class Family(NamedTuple):
    """One family of models."""

    title: str
    layouts: tuple[str, ...]
    covered: tuple[str, ...] = ()
    not_covered: tuple[str, ...] = ()


_FOR_ALL = (
    "fp32, fp16, bf16 and fp64 weights, in one file or sharded",
    "tied and untied heads",
)
_FOR_NONE = ("quantised weights (GPTQ, AWQ, bitsandbytes, GGUF, fp8, integers)",)
_SILU = ("activations of the mixer other than silu",)
_NO_EXPONENT = "attention has no state of fixed size: no exponent, not a recurrence"


def _transformers(model_type: str) -> str:
    return (
        f"transformers (model_type {model_type}): model.safetensors or"
        " pytorch_model.bin, one file or sharded"
    )


FAMILIES = {
    "mamba1": Family(
        "Mamba-1",
        (
            _transformers("mamba"),
            "mamba_ssm: pytorch_model.bin or model.safetensors",
        ),
        (
            "padded vocabularies",
            "biases of the projections and of the convolution, or none",
            "RMSNorm or LayerNorm, attention layers and MLPs among the mixers"
            " (mamba_ssm)",
        ),
        (
            *_SILU,
            "attention of mamba_ssm that is not causal, has interleaved positions or"
            " an MLP of its own (mlp_dim)",
        ),
    ),
    "falcon_mamba": Family(
        "Falcon Mamba",
        (_transformers("falcon_mamba"),),
        ("norms without weights over dt, B and C, before dt_proj",),
        (
            *_SILU,
            "the fused kernel of training, which normalises dt after dt_proj: another"
            " function",
        ),
    ),
    "mamba2": Family(
        "Mamba-2, Codestral Mamba",
        (
            _transformers("mamba2"),
            "mamba_ssm (ssm_cfg.layer Mamba2): pytorch_model.bin or model.safetensors",
            "Mistral: params.json and consolidated.safetensors",
        ),
        (
            "groups, D per head or per channel, limits of dt",
            "the gated norm before or after the gate, or none",
            "RMSNorm or LayerNorm, attention layers and MLPs among the mixers"
            " (mamba_ssm)",
        ),
        (
            *_SILU,
            "an MLP inside the mixer (d_ssm below d_inner)",
            "attention of mamba_ssm that is not causal, has interleaved positions or"
            " an MLP of its own (mlp_dim)",
        ),
    ),
    "mamba3": Family(
        "Mamba-3",
        ("mamba_ssm (ssm_cfg.layer Mamba3): pytorch_model.bin or model.safetensors",),
        (
            "SISO and MIMO of any rank, groups, the norm before the gate or none",
            "the decay -softplus of mamba_ssm 2.3.2",
            "prefill and decode of mamba_ssm's kernels, emulated",
        ),
        (
            "a run on mamba_ssm's kernels themselves (--measure mamba_ssm)",
            "prefill in fp32 with a rank above 1, and fp16-cast",
            "the decay with a heavy tail of mamba_ssm after 2.3.2, which no"
            " configuration names: another function",
        ),
    ),
    "jamba": Family(
        "Jamba",
        (_transformers("jamba"),),
        ("norms over dt, B and C", "attention without positions", "experts"),
        (_NO_EXPONENT, *_SILU),
    ),
    "zamba": Family(
        "Zamba",
        (_transformers("zamba"),),
        ("mixers of several heads", "the shared block, which reads the embedding"),
        (_NO_EXPONENT, *_SILU),
    ),
    "zamba2": Family(
        "Zamba2",
        (_transformers("zamba2"),),
        (
            "shared blocks in turn, with the adapters of each layer",
            "positions",
            "limits of dt by time_step_limit, and not by time_step_min",
        ),
        (_NO_EXPONENT,),
    ),
    "bamba": Family(
        "Bamba",
        (_transformers("bamba"),),
        ("attention whose heads turn by half", "biases", "limits of dt"),
        (_NO_EXPONENT, *_SILU),
    ),
    "granitemoehybrid": Family(
        "Granite 4 hybrid",
        (_transformers("granitemoehybrid"),),
        ("experts and the shared MLP", "all multipliers", "positions or none"),
        (_NO_EXPONENT, *_SILU),
    ),
    "nemotron_h": Family(
        "Nemotron-H",
        (_transformers("nemotron_h"),),
        (
            "mixers, attention, MLPs and experts in any order, latent experts",
            "limits of dt by time_step_limit, as the publisher's code has them",
        ),
        (
            _NO_EXPONENT,
            *_SILU,
            "experts chosen group by group",
            "heads for more tokens",
        ),
    ),
    "falcon_h1": Family(
        "Falcon-H1",
        (_transformers("falcon_h1"),),
        ("mixer and attention side by side", "all multipliers"),
        (_NO_EXPONENT, *_SILU),
    ),
    "megatron": Family(
        "Megatron hybrids (nvidia mamba2-8b, mamba2-hybrid-8b)",
        ("Megatron: model_optim_rng.pt, one file or one a tensor-parallel rank",),
        ("mixers, attention and MLPs, with norms alone or fused with projections",),
        (
            _NO_EXPONENT,
            "pipeline-parallel and torch_dist checkpoints",
            "LayerNorm, biases of linear layers, experts",
        ),
    ),
    "gpt_neox": Family(
        "GPT-NeoX (Pythia)",
        (_transformers("gpt_neox"),),
        ("attention and MLP side by side or in turn",),
        (_NO_EXPONENT, "positions of other kinds (rope_type)"),
    ),
    "llama": Family(
        "Llama (TinyLlama)",
        (_transformers("llama"),),
        ("grouped heads", "biases, or none"),
        (_NO_EXPONENT, "positions of other kinds (rope_type)"),
    ),
    "olmo": Family(
        "OLMo",
        (_transformers("olmo"),),
        ("norms without weights", "clipped queries, keys and values"),
        (_NO_EXPONENT, "positions of other kinds (rope_type)"),
    ),
    "olmo2": Family(
        "OLMo 2",
        (_transformers("olmo2"),),
        ("norms behind attention and MLP, over queries and keys",),
        (_NO_EXPONENT, "positions of other kinds (rope_type)"),
    ),
    "openelm": Family(
        "OpenELM",
        ("Apple's own (model_type openelm): model.safetensors",),
        ("heads and widths that change from layer to layer",),
        (_NO_EXPONENT, "MLPs without a gate, norms other than RMSNorm"),
    ),
}
"""By the name that the report uses."""

PLANNED: dict[str, str] = {}
"""Not covered yet."""


def list_architectures() -> list[dict[str, Any]]:
    """What is covered: `name`, `title`, `layouts`, `covered` and `not_covered` each."""
    listed = [
        {
            "name": name,
            "title": family.title,
            "layouts": list(family.layouts),
            "covered": [*_FOR_ALL, *family.covered],
            "not_covered": [*_FOR_NONE, *family.not_covered],
        }
        for name, family in FAMILIES.items()
    ]
    return listed + [
        {
            "name": name,
            "title": title,
            "layouts": [],
            "covered": [],
            "not_covered": ["planned"],
        }
        for name, title in PLANNED.items()
    ]
