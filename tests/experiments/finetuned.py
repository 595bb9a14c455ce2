"""Tiny checkpoints and made-up data, to fine-tune within seconds."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from experiments.trained.networks import fresh, gpt_neox_config, mamba_ssm_config
from experiments.trained.shapes import equal_shapes


SHAPES = equal_shapes(16, 1)
KINDS = ("mamba1", "mamba2", "gpt_neox")


def checkpoint(folder: Path, kind: str) -> Path:
    """A random network of this kind, saved as experiments.train saves its own."""
    from transformers import GPTNeoXConfig

    shape = SHAPES[kind]
    torch.manual_seed(1)
    network = fresh(shape, 0.0, torch.device("cpu"))
    where = folder / kind
    where.mkdir(parents=True)
    save_file(network.stored(), where / "model.safetensors")
    if kind == "gpt_neox":
        settings = gpt_neox_config(GPTNeoXConfig, shape).to_dict()
    else:
        settings = mamba_ssm_config(shape) | {"lyapunov_tokenizer": "bytes"}
    (where / "config.json").write_text(json.dumps(settings))
    return where


def corpus(folder: Path) -> Path:
    """Sums in GSM8K's format."""
    folder.mkdir()
    for name, n in (("gsm8k_train.jsonl", 340), ("gsm8k_test.jsonl", 20)):
        lines = [
            {
                "question": f"Ann has {i} apples and gets {2 * i}. How many has she?",
                "answer": f"{i}+{2 * i}=<<{i}+{2 * i}={3 * i}>>{3 * i}\n#### {3 * i}",
            }
            for i in range(4, 4 + n)
        ]
        (folder / name).write_text("\n".join(map(json.dumps, lines)))
    return folder


def byte_pairs(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of byte pairs, learned from these texts."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made)
