"""The published shapes, the variants that are measured, and their networks."""

from dataclasses import dataclass
from typing import Any

import torch

from experiments.finetuning.networks import Tuned
from experiments.trained.networks import mamba_ssm_config, try_few
from experiments.trained.shapes import Shape
from studies.problems import Problem


TINY = "tiny"  # for CPUs
_STATE = 16
_MAMBA1 = {
    "130m": (768, 24), "370m": (1024, 48), "790m": (1536, 48), "1.4b": (2048, 48),
    "2.8b": (2560, 64), TINY: (64, 2),
}  # fmt: skip
# Pythia's: width, layers, heads.
_GPT_NEOX = {
    "160m": (768, 12, 12), "410m": (1024, 24, 16), "1b": (2048, 16, 8),
    "1.4b": (2048, 24, 16), "2.8b": (2560, 32, 32), TINY: (64, 2, 4),
}  # fmt: skip
SHAPES = {"mamba1": tuple(_MAMBA1), "gpt_neox": tuple(_GPT_NEOX)}
_PLAIN = {"mamba1": "fused", "gpt_neox": "sdpa"}  # paths
_VOCABULARY = {"mamba1": 50280, "gpt_neox": 50304}
_TINY_VOCABULARY = 256
HALF = tuple((m, p) for m in ("lora-all", "lora-some") for p in ("fp16", "bf16"))


@dataclass(frozen=True)
class Case:
    """One network trained in one way.

    `path`: "fused" (mamba_ssm's own forward; on a CPU transformers'), "open" (every
    projection a module that is called, as adapters need it), or "sdpa" (GPT-NeoX).
    """

    family: str
    shape: str
    method: str
    precision: str
    path: str

    @property
    def variant(self) -> str:
        """In words."""
        shown = f"{self.method} {self.precision}"
        return (
            f"{shown} open" if (self.method, self.path) == ("full", "open") else shown
        )

    @property
    def vocabulary(self) -> int:
        """Entries."""
        return _TINY_VOCABULARY if self.shape == TINY else _VOCABULARY[self.family]

    def parameters(self) -> float:
        """About how many; for telling how long is left."""
        if self.family == "mamba1":
            width, layers = _MAMBA1[self.shape]
            return 6.25 * layers * width**2 + self.vocabulary * width
        width, layers, _ = _GPT_NEOX[self.shape]
        return 12 * layers * width**2 + 2 * self.vocabulary * width


def published(family: str, shape: str) -> list[Case]:
    """What the published figures are made of: the fp32 full fine-tune, then LoRA."""
    adapted = "open" if family == "mamba1" else _PLAIN[family]
    return [
        Case(family, shape, "full", "fp32", _PLAIN[family]),
        *(Case(family, shape, method, p, adapted) for method, p in HALF),
    ]


def contrast(family: str, shape: str) -> list[Case]:
    """What tells apart why: half precision without LoRA, and the other path."""
    found = [Case(family, shape, "full", "bf16", _PLAIN[family])]
    if family == "mamba1":
        found.append(Case(family, shape, "full", "fp32", "open"))
    return found


def cases(families: list[str], shapes: list[str]) -> list[Case]:
    """All that is to be measured, the published figures' first.

    **Raises:**

    Problem if a shape is of none of the families, or one has none of the shapes.
    """
    for shape in shapes:
        if not any(shape in SHAPES[family] for family in families):
            known = "; ".join(f"{f}: {' '.join(SHAPES[f])}" for f in families)
            raise Problem(f"no shape {shape!r} in {' '.join(families)}", known)
    both = [(f, s) for f in families for s in SHAPES[f] if s in shapes]
    for family in families:
        if family not in [f for f, _ in both]:
            raise Problem(
                f"{family} has none of the shapes {' '.join(shapes)}",
                f"give one of {' '.join(SHAPES[family])}, or leave out {family}",
            )
    first = [case for f, s in both for case in published(f, s)]
    return first + [case for f, s in both for case in contrast(f, s)]


def network(case: Case, device: torch.device) -> Tuned:
    """The network with random weights, fp32, made on the device."""
    opened = case.path == "open"
    if case.family == "gpt_neox":
        inner = _gpt_neox(case, device)
    elif device.type == "cuda":
        inner = _of_mamba_ssm(case, device)
    else:
        inner = _of_transformers(case)
    return Tuned(inner, case.family, lambda text: list(text.encode()), opened=opened)


def _of_mamba_ssm(case: Case, device: torch.device) -> torch.nn.Module:
    try:
        from mamba_ssm.models.config_mamba import MambaConfig
        from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
    except ImportError as error:
        raise Problem(
            f"mamba_ssm cannot be imported ({error})",
            "install mamba_ssm and causal_conv1d, or use --families gpt_neox",
        ) from error
    # one configuration of each of Triton's kernels, the norms': to try all of them
    # takes minutes of compiling, and they are a small part of a step
    try_few(1)
    width, layers = _MAMBA1[case.shape]
    settings = mamba_ssm_config(Shape("mamba1", width, layers, _STATE))
    made: Any = MambaConfig(**{**settings, "vocab_size": case.vocabulary})
    return MambaLMHeadModel(made, device=device, dtype=torch.float32)


def _of_transformers(case: Case) -> torch.nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    width, layers = _MAMBA1[case.shape]
    return MambaForCausalLM(
        MambaConfig(
            vocab_size=case.vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            state_size=_STATE,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def _gpt_neox(case: Case, device: torch.device) -> torch.nn.Module:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    width, layers, heads = _GPT_NEOX[case.shape]
    settings: Any = dict(
        vocab_size=case.vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        attn_implementation="sdpa",
    )
    with torch.device(device):
        return GPTNeoXForCausalLM(GPTNeoXConfig(**settings))
