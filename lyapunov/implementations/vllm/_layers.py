"""A network of Mamba-1 or Mamba-2 around vLLM's operators, in torch.

After vLLM 0.33.0: `models/mamba.py`, `models/mamba2.py`, `MambaMixer.forward_impl`,
`MambaMixer2.conv_ssm_forward`. What vLLM compiles by default, norms among it, is
written as the compiled form computes: in fp32, with one rounding at its end; eager is
`--enforce-eager`, where each operation rounds.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

from .._implementation import RefusedError
from ._batch import Pass, chunks_of, conv_programs
from ._norms import normalised, weighted
from ._operators import Operators, launching


class Ring(NamedTuple):
    """The last tokens of each slot, which ReplaySSM keeps between two stores."""

    x: Any
    """(slots, heads, tokens, head_dim), in the model's dtype."""
    dt: Any
    """(slots, heads, tokens), fp32."""
    B: Any
    """(slots, groups, tokens, d_state), in the model's dtype."""

    @property
    def tokens(self) -> int:
        """How many it holds."""
        return self.dt.shape[2]


class Cache(NamedTuple):
    """What one layer keeps of all sequences, by slot."""

    window: Any
    """(slots, width - 1, channels): inputs of the convolution; with windows of drafts
    those of all drafts but one, too."""
    state: Any
    """(slots, heads, head_dim, d_state); of Mamba-1 (slots, d_inner, d_state)."""
    ring: Ring | None = None
    """Where the state is not stored at every step."""
    scale: Any = None
    """(slots, heads, head_dim), fp32, of a state in integers: of each row of states."""

    @property
    def conv(self) -> Any:
        """The window as the convolution takes it, channels before tokens."""
        return self.window.transpose(-1, -2)


class Layer:
    """One mixer and the norm in front of it.

    **Arguments:**

    - `weights`: by canonical name, torch tensors in the model's dtype, but A.
    - `sizes`: of the sublayer.
    - `operators`: vLLM's.
    - `eager`: whether nothing is compiled.
    """

    def __init__(
        self, weights: Mapping[str, Any], sizes: Any, operators: Operators, eager: bool
    ):
        self.weights = weights
        self.sizes = sizes
        self.operators = operators
        self._eager = eager

    def mixer(
        self, x: Any, plans: tuple[Pass, ...], cache: Cache, seen: dict[str, Any]
    ) -> Any:
        """What the mixer makes of tokens (tokens, d_model) of one forward pass, steps
        in front of prefills; `seen` gets what it stores, (tokens, width) each, by
        site."""
        run = self._mamba2 if self.sizes.kind == "mamba2" else self._mamba1
        with launching(self.operators):
            return run(x, plans, cache, seen)

    def _mamba2(
        self, x: Any, plans: tuple[Pass, ...], cache: Cache, seen: dict[str, Any]
    ) -> Any:
        import torch
        from torch.nn.functional import linear

        w, sizes = self.weights, self.sizes
        projected = linear(x, w["in_proj"], w.get("in_proj_bias"))
        # a step's convolution writes into it
        seen["xz"] = projected.clone() if plans[0].steps else projected
        y = torch.empty(len(x), sizes.d_inner, dtype=x.dtype, device=x.device)
        convolutions = {}
        for plan, rows in prefills_first(plans):
            read = projected[rows, sizes.d_inner : -sizes.heads]
            conv = convolved(self.operators, w, read, plan, cache)
            convolutions[rows.start] = conv
            given = read, conv, projected[rows, -sizes.heads :]
            self._scanned(given, y[rows], plan, cache)
        seen["conv"] = joined(convolutions)
        seen["scan_output"] = y
        gated = self._gated(y, projected[:, : sizes.d_inner])
        seen["gated"] = gated
        return linear(gated, w["out_proj"], w.get("out_proj_bias"))

    def _scanned(
        self, given: tuple[Any, Any, Any], y: Any, plan: Pass, cache: Cache
    ) -> None:
        """The scan of a Mamba-2, or its steps, written to `y` (tokens, d_inner).

        **Arguments:**

        - `given`: what the convolution read, what it made of it, and dt.
        """
        import torch

        read, conv, dt = given
        w, sizes, count = self.weights, self.sizes, len(conv)
        wide = sizes.groups * sizes.d_state
        u, B, C = torch.split(conv, [sizes.d_inner, wide, wide], dim=-1)
        heads = lambda a: a.view(count, sizes.heads, -1)
        grouped = lambda a: a.view(count, sizes.groups, -1)
        if plan.steps:
            self._step((heads(u), dt, grouped(B), grouped(C), heads(y)), plan, cache)
            return
        chunks = chunks_of(plan, sizes.chunk)
        initial = None
        if plan.resumes:
            # copies: the kernels write the slots before all of them are read
            fresh = plan.resumed[:, None, None, None]
            initial = torch.where(fresh, cache.state[plan.slots.long()], 0)
        keeps = chunks.block is not None
        states = self.operators.chunk_scan(
            heads(u),
            dt,
            w["A"],
            grouped(B),
            grouped(C),
            chunk_size=sizes.chunk,
            D=w["D"],
            z=None,
            dt_bias=w["dt_bias"],
            seq_idx=chunks.sequence,
            cu_seqlens=plan.starts,
            cu_chunk_seqlens=chunks.ends,
            last_chunk_indices=chunks.last,
            initial_states=initial,
            return_intermediate_states=keeps,
            dt_softplus=True,
            dt_limit=(0.0, float("inf")),
            out=heads(y),
            state_dtype=cache.state.dtype,
            final_states_out=None if keeps else cache.state,
            final_state_indices=None if keeps else plan.slots,
        )
        if keeps:
            assert self.operators.checkpoint is not None, "asked for by the schedule"
            self.operators.checkpoint(
                SimpleNamespace(
                    checkpoint_offsets=torch.tensor(
                        plan.blocks, dtype=torch.int32, device=conv.device
                    ),
                    state_indices=plan.block_slots,
                ),
                chunks.block,
                read.transpose(0, 1),
                cache.conv,
                states,
                cache.state,
                plan.starts,
                state_len=sizes.d_conv - 1,
            )
            cache.state[plan.slots.long()] = states[chunks.last.long()]

    def _step(self, parts: tuple[Any, ...], plan: Pass, cache: Cache) -> None:
        """One token a sequence, or a window of drafts.

        **Arguments:**

        - `parts`: x, dt, B, C and what is written, by heads and groups.
        """
        import torch

        x, dt, B, C, y = parts
        w, sizes, ring = self.weights, self.sizes, cache.ring
        dim = sizes.d_inner // sizes.heads
        given = (
            cache.state,
            x,
            dt[:, :, None].expand(-1, -1, dim),
            w["A"][:, None, None].expand(-1, dim, sizes.d_state),
            B,
            C,
            w["D"][:, None].expand(-1, dim),
            w["dt_bias"][:, None].expand(-1, dim),
        )
        named = {"dt_softplus": True, "state_batch_indices": plan.slots, "out": y}
        if ring is None:
            named["dst_state_batch_indices"] = plan.slots
            if cache.scale is not None:
                named["state_scale"] = cache.scale
            self.operators.step(*given, **named, **_windows(plan))
            return
        place = plan.turns % ring.tokens
        scratch = (len(x), sizes.groups, ring.tokens)
        self.operators.replay(
            *given,
            x_cache=ring.x,
            dt_cache=ring.dt,
            B_cache=ring.B,
            bc_pre=torch.empty(scratch, dtype=torch.float32, device=x.device),
            write_pos=place,
            is_flush=(place == ring.tokens - 1).to(torch.int8),
            max_cache_len=ring.tokens,
            **named,
        )

    def _mamba1(
        self, x: Any, plans: tuple[Pass, ...], cache: Cache, seen: dict[str, Any]
    ) -> Any:
        from torch.nn.functional import linear

        w, scan = self.weights, self.operators.scan
        if not all(plan.steps for plan in plans) and scan is None:
            raise RefusedError(
                "vLLM's prefill of Mamba-1 is compiled, and is not among its Python "
                "files",
                hint="pip install vllm==0.33.0, or csrc of its sdist beside them, or "
                "--mode decode",
            )
        projected = linear(x, w["in_proj"], w.get("in_proj_bias"))
        seen["xz"] = projected.clone() if plans[0].steps else projected
        made: dict[str, dict[int, Any]] = {}
        for plan, rows in prefills_first(plans):
            u, gate = projected[rows].chunk(2, dim=-1)
            read = convolved(self.operators, w, u, plan, cache)
            found = self._selected(read, gate, plan, cache)
            for site, tensor in found.items():
                made.setdefault(site, {})[rows.start] = tensor
        seen |= {site: joined(parts) for site, parts in made.items()}
        return linear(seen["gated"], w["out_proj"], w.get("out_proj_bias"))

    def _selected(self, u: Any, gate: Any, plan: Pass, cache: Cache) -> dict[str, Any]:
        """The scan of a Mamba-1, or its steps, and what is stored on the way, by
        site."""
        import torch
        from torch.nn.functional import linear

        w, sizes, scan = self.weights, self.sizes, self.operators.scan
        seen = {"conv": u}
        low = linear(u, w["x_proj"])
        seen["x_proj"] = low
        parts = [sizes.dt_rank, sizes.d_state, sizes.d_state]
        dt, B, C = torch.split(low, parts, dim=-1)
        dt = linear(dt, w["dt_proj"])
        seen["dt"] = dt
        bias = w["dt_bias"].float()
        if plan.steps:
            gated = torch.empty_like(u, memory_format=torch.contiguous_format)
            self.operators.step(
                cache.state,
                u,
                dt,
                w["A"],
                B,
                C,
                w["D"],
                bias,
                z=gate,
                dt_softplus=True,
                state_batch_indices=plan.slots,
                dst_state_batch_indices=plan.slots,
                out=gated,
            )
        else:
            assert scan is not None, "refused in front of the projection"
            gated = scan(
                u.T,
                cache.state,
                # what comes out is written over one of these
                dt.T.contiguous(),
                w["A"],
                B.T,
                C.T,
                w["D"].float(),
                gate.T.contiguous(),
                bias,
                delta_softplus=True,
                cache_indices=plan.slots,
                has_initial_state=plan.resumed,
                query_start_loc=plan.starts,
            ).T
        return seen | {"gated": gated}

    def _gated(self, y: Any, gate: Any) -> Any:
        """The gated norm (`Mixer2RMSNormGated`), or the gate alone."""
        from torch.nn.functional import silu

        weight, sizes = self.weights.get("gate_norm"), self.sizes
        if weight is None:
            gate = silu(gate.float())
            return y * gate.to(y.dtype) if self._eager else (y * gate).to(y.dtype)
        if self._eager and sizes.groups == 1:
            return self.operators.gated_norm(
                y,
                weight,
                bias=None,
                z=gate,
                eps=sizes.gate_norm_epsilon,
                norm_before_gate=False,
            )
        wide = y * silu(gate.float())
        wide = wide.view(len(y), sizes.groups, -1)
        hat = normalised(wide, sizes.gate_norm_epsilon).view(y.shape)
        return weighted(hat, weight, y.dtype, self._eager)


def prefills_first(plans: tuple[Pass, ...]) -> list[tuple[Pass, slice]]:
    """The passes of one batch as vLLM runs them, and the rows that each has."""
    found, begin = [], 0
    for plan in plans:
        end = begin + sum(plan.lengths)
        found.append((plan, slice(begin, end)))
        begin = end
    return found[::-1]


def joined(parts: dict[int, Any]) -> Any:
    """Tensors by their first row, one behind another."""
    import torch

    if len(parts) == 1:
        return next(iter(parts.values()))
    return torch.cat([parts[begin] for begin in sorted(parts)])


def _windows(plan: Pass) -> dict[str, Any]:
    """What a step is told of a window of drafts."""
    if plan.accepted is None:
        return {}
    return {"num_accepted_tokens": plan.accepted, "cu_seqlens": plan.starts}


def convolved(
    operators: Operators, w: Mapping[str, Any], u: Any, plan: Pass, cache: Cache
) -> Any:
    """The convolution and silu of (tokens, channels), a view of wider rows."""
    if plan.steps:
        windows: dict[str, Any] = {}
        if plan.accepted is not None:
            windows = {
                "num_accepted_tokens": plan.accepted,
                "query_start_loc": plan.starts,
                "max_query_len": plan.slots.shape[1],
            }
        return operators.conv_step(
            u,
            cache.conv,
            w["conv_weight"],
            w["conv_bias"],
            "silu",
            conv_state_indices=plan.slots,
            **windows,
        )
    return operators.conv(
        u.transpose(0, 1),
        w["conv_weight"],
        w["conv_bias"],
        activation="silu",
        conv_states=cache.conv,
        has_initial_state=plan.resumed,
        cache_indices=plan.slots,
        metadata=conv_programs(plan),
        query_start_loc=plan.starts,
    ).transpose(0, 1)
