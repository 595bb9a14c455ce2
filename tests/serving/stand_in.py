"""Servers of one small model: requests, blocks, drafts and packed batches as in vLLM's
and SGLang's, around the modules of `mixers`."""

import math
from collections import namedtuple
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from .mixers import Block, MambaMixer, MambaMixer2, Network, Norm


Part = namedtuple("Part", "request start stop step blocks accepted")
"""One request's share of a call: tokens from `start`, its blocks, and with drafts how
many tokens of the call before were accepted."""


def part(request, start, stop, *blocks, step=False, accepted=None):
    return Part(request, start, stop, step, blocks, accepted)


@dataclass
class Server:
    """One model, its blocks, and requests that are run in whatever calls a test says.

    `texts` are the requests' tokens. `before` is run in front of a call, with its
    number: copies of blocks, and faults.
    """

    model: Any
    texts: dict[str, np.ndarray]
    precision: str = "fp32"
    cache: torch.dtype = torch.float32
    spec: int = 0
    window_dtype: Any = None
    sglang: bool = False
    before: dict[int, Callable] = field(default_factory=dict)

    def __post_init__(self):
        names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        dtype = names[self.precision]
        kinds = {"mamba1": MambaMixer, "mamba2": MambaMixer2}
        self.now: Any = None
        blocks = []
        for layer, sizes in enumerate(self.model.config.sublayers):
            raw = self.model.raw_parameters(layer)
            mixer = kinds[sizes.kind](
                raw, sizes, f"layers.{layer}.mixer", lambda: self.now, dtype,
                self.cache, spec=self.spec, blocks=12, window_dtype=self.window_dtype,
            )  # fmt: skip
            norm = Norm(raw["norm"], sizes.norm_epsilon, dtype)
            blocks.append(Block(mixer, norm, self._backend if self.sglang else None))
        self.network = Network(self.model, blocks, dtype)
        self.request_ids: list[str] = []

    @property
    def mixers(self) -> list[Any]:
        return [block.mixer for block in self.network.layers]

    @property
    def worker(self):
        """What vLLM's `collective_rpc` gives to a function."""
        batch = SimpleNamespace(req_ids=self.request_ids)
        runner = SimpleNamespace(get_model=lambda: self.network, input_batch=batch)
        return SimpleNamespace(model_runner=runner)

    def context(self):
        """vLLM's forward context."""
        return SimpleNamespace(
            attn_metadata={one.prefix: self.now.metadata for one in self.mixers}
        )

    def run(self, *calls, around=None):
        """Run calls, each a list of parts; decoding ones go first in vLLM, last in
        SGLang."""
        with around or nullcontext(), torch.no_grad():
            for number, parts in enumerate(calls):
                parts = sorted(parts, key=lambda p: p.step == self.sglang)
                if number in self.before:
                    self.before[number](self)
                self._call(parts)

    def copy(self, source, target):
        """A copy of a block's bytes, in every layer."""
        for one in self.mixers:
            for tensor in one.kv_cache:
                tensor[target] = tensor[source]

    def _call(self, parts):
        rows, first = [], 0
        for one in parts:
            size = one.stop - one.start
            rows.append((one, range(first, first + size)))
            first += size
        ids = [self.texts[p.request][p.start : p.stop] for p in parts]
        places = [np.arange(p.start, p.stop) for p in parts]
        self.request_ids[:] = [f"{p.request}-0a1b2c3d" for p in parts]
        self.now = SimpleNamespace(rows=rows, metadata=metadata(parts, self.spec))
        tensors: dict[str, Any] = {
            "input_ids": torch.tensor(np.concatenate(ids)),
            "positions": torch.tensor(np.concatenate(places)),
        }
        if self.sglang:
            tensors["forward_batch"] = forward_batch(parts)
        hidden = self.network(**tensors)
        last = [own[-1] for one, own in rows for _ in [0]]
        drafted = [i for one, own in rows if one.accepted for i in own]
        self.network.compute_logits(hidden[drafted or last])

    def _backend(self, mixer, hidden):
        windows, states = mixer.kv_cache
        cache = SimpleNamespace(conv=[windows.transpose(-1, -2)], temporal=states)
        blocks = torch.tensor([one.blocks[0] for one, _ in self.now.rows])
        given = SimpleNamespace(mamba_cache_indices=blocks)
        return mixer.forward(hidden_states=hidden, layer_cache=cache, metadata=given)[0]


def metadata(parts, spec):
    """vLLM's, of one call."""
    steps = [p for p in parts if p.step]
    prefills = [p for p in parts if not p.step]
    ends = lambda some: torch.tensor(np.cumsum([0, *(p.stop - p.start for p in some)]))
    padded = [[*p.blocks, *[0] * (1 + spec - len(p.blocks))] for p in steps]
    return SimpleNamespace(
        num_decodes=len(steps),
        num_prefills=len(prefills),
        num_decode_tokens=sum(p.stop - p.start for p in steps),
        num_prefill_tokens=sum(p.stop - p.start for p in prefills),
        query_start_loc_d=ends(steps) if steps and spec else None,
        query_start_loc_p=ends(prefills) if prefills else None,
        has_initial_states_p=torch.tensor([p.start > 0 for p in prefills]),
        state_indices_tensor_d=torch.tensor(padded) if steps else None,
        state_indices_tensor_p=torch.tensor([p.blocks[0] for p in prefills]),
        num_accepted_tokens=torch.tensor([p.accepted or 1 for p in steps])
        if spec and steps
        else None,
    )


def forward_batch(parts):
    """SGLang's, of one call."""
    decoding = all(p.step for p in parts)
    extended = [p for p in parts if not p.step]
    mode = SimpleNamespace(is_decode=lambda: decoding, is_target_verify=lambda: False)
    return SimpleNamespace(
        rids=[p.request for p in parts],
        batch_size=len(parts),
        forward_mode=mode,
        extend_seq_lens_cpu=[p.stop - p.start for p in extended],
        extend_prefix_lens_cpu=[p.start for p in extended],
    )


def quantised(state):
    """SGLang's int8 store there and back, in NumPy: one scale a (head, state)."""
    wide = state.float().numpy()
    amax = np.maximum(np.abs(wide).max(-2, keepdims=True), np.float32(1e-8))
    scale = torch.tensor(amax / np.float32(127)).to(state.dtype)
    scale = scale.float().numpy()
    q = np.clip(np.rint(wide / scale), -127, 127).astype(np.int8)
    assert math.isfinite(float(scale.max()))
    return torch.tensor(q.astype(np.float32) * scale).to(state.dtype)
