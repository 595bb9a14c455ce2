"""Mixers of delta rules around vLLM's operators, in torch.

After vLLM 0.33.0: `_forward_core` of `gdn/qwen_gdn_linear_attn.py`, with Triton's
prefill, and `_forward` of `gdn/kimi_gdn_linear_attn.py`. The gated norm is written as
both forms of it compute: in fp32, with one rounding at its end.
"""

from collections.abc import Mapping
from typing import Any

from .._implementation import RefusedError
from ._batch import Pass
from ._delta_operators import delta_operators, watched
from ._layers import Cache, convolved, joined, prefills_first
from ._norms import normalised
from ._operators import Operators, launching


class DeltaLayer:
    """One mixer.

    **Arguments:**

    - `weights`: by canonical name, torch tensors as vLLM holds them.
    - `sizes`: of the sublayer.
    """

    def __init__(self, weights: Mapping[str, Any], sizes: Any, operators: Operators):
        import torch

        self.weights = weights
        self.sizes = sizes
        self._operators = operators
        parts = [weights[f"{name}_proj"] for name in "qkv"]
        self._qkv, self._widths = torch.cat(parts), [len(part) for part in parts]

    def mixer(
        self, x: Any, plans: tuple[Pass, ...], cache: Cache, seen: dict[str, Any]
    ) -> Any:
        """What the mixer makes of tokens (tokens, d_model) of one forward pass, steps
        in front of prefills; `seen` gets what all of them store, (tokens, ...) each, by
        site.

        **Raises:** `RefusedError` for both at once of a Kimi Linear.
        """
        kimi = self.sizes.kind == "kimi_delta"
        with launching(self._operators):
            if len(plans) == 1:
                run = self._kimi if kimi else self._gated
                return run(x, plans[0], cache, seen)
            if kimi:
                raise RefusedError(
                    "beside a prefill vLLM sends steps of Kimi Linear through chunks",
                    hint="steps, or packed",
                )
            out, parts = {}, {}
            for plan, rows in prefills_first(plans):
                own = parts[rows.start] = {}
                out[rows.start] = self._gated(x[rows], plan, cache, own, beside=True)
            for site in set.intersection(*map(set, parts.values())):
                seen[site] = joined({at: own[site] for at, own in parts.items()})
            return joined(out)

    def _mixed(self, x: Any, plan: Pass, cache: Cache, seen: dict[str, Any]) -> Any:
        """Queries, keys and values behind the convolution, (tokens, channels)."""
        import torch
        from torch.nn.functional import linear

        wide = linear(x, self._qkv)
        # a step's convolution writes into it
        own = wide.clone() if plan.steps else wide
        seen.update(zip("qkv", torch.split(own, self._widths, dim=-1), strict=True))
        conv = convolved(self._operators, self.weights, wide, plan, cache).contiguous()
        # and a prefill of Kimi's over its values
        seen["conv"] = conv.clone()
        return conv

    def _gated(
        self,
        x: Any,
        plan: Pass,
        cache: Cache,
        seen: dict[str, Any],
        *,
        beside: bool = False,
    ) -> Any:
        """`beside`: whether a prefill goes through with the steps."""
        import torch
        from torch.nn.functional import linear, silu

        w, sizes, run = self.weights, self.sizes, delta_operators()
        conv = self._mixed(x, plan, cache, seen)
        seen["z"], a, b = (linear(x, w[f"{name}_proj"]) for name in "zab")
        seen |= {"gate_logit": a, "rate_logit": b}
        gates = {"a": a, "b": b, "A_log": w["A_log"], "dt_bias": w["dt_bias"]}
        if not plan.steps:
            q, k, v, gate, rate = run.prepared(
                conv_output=conv,
                **gates,
                num_k_heads=sizes.key_heads,
                head_k_dim=sizes.key_dim,
                head_v_dim=sizes.value_dim,
                apply_l2norm=True,
                output_g_exp=False,
            )
            seen |= {"q_unit": q, "k_unit": k}
            q, k, v, gate, rate = (part[None] for part in (q, k, v, gate, rate))
            with watched(sizes.kind, seen):
                y, after = run.chunks(
                    q=q,
                    k=k,
                    v=v,
                    g=gate,
                    beta=rate,
                    initial_state=_initial(plan, cache),
                    output_final_state=True,
                    cu_seqlens=plan.starts,
                    use_qk_l2norm_in_kernel=False,
                )
            cache.state[plan.slots.long()] = after.to(cache.state.dtype)
        elif plan.accepted is None and not beside:
            shape = len(x), 1, sizes.value_heads, sizes.value_dim
            y = torch.empty(shape, dtype=x.dtype, device=x.device)
            run.step(
                mixed_qkv=conv,
                **gates,
                scale=sizes.key_dim**-0.5,
                initial_state=cache.state,
                out=y,
                ssm_state_indices=plan.slots,
                use_qk_l2norm_in_kernel=True,
            )
        else:
            q, k, v = self._headed(conv)
            y, _ = run.window(
                **gates,
                q=q,
                k=k,
                v=v,
                initial_state=cache.state,
                inplace_final_state=True,
                cu_seqlens=plan.starts,
                ssm_state_indices=plan.slots,
                num_accepted_tokens=plan.accepted,
                use_qk_l2norm_in_kernel=True,
            )
        return self._put_out(x, y, silu, seen)

    def _headed(self, conv: Any) -> Any:
        """Queries, keys and values, (1, tokens, heads, ...) each."""
        import torch

        sizes, parts = self.sizes, torch.split(conv, self._widths, dim=-1)
        dims = sizes.key_dim, sizes.key_dim, sizes.value_dim
        return [
            part.contiguous().view(1, len(conv), -1, dim)
            for part, dim in zip(parts, dims, strict=True)
        ]

    def _kimi(self, x: Any, plan: Pass, cache: Cache, seen: dict[str, Any]) -> Any:
        import torch
        from torch.nn.functional import linear

        w, sizes, run = self.weights, self.sizes, delta_operators()
        conv = self._mixed(x, plan, cache, seen)
        for site, name in (("forget", "f"), ("z", "g")):
            seen[f"{site}_low"] = linear(x, w[f"{name}_down"])
            seen[site] = linear(seen[f"{site}_low"], w[f"{name}_up"])
        seen["rate_logit"] = linear(x, w["b_proj"])
        raw = {
            "raw_g": seen["forget"].view(1, len(x), sizes.heads, sizes.key_dim),
            "raw_beta": seen["rate_logit"][None],
            "A_log": w["A_log"],
            "lower_bound": None,
        }
        if not plan.steps:
            q, k, v = self._headed(conv)
            with watched(sizes.kind, seen):
                y, after = run.kimi_chunks(
                    q=q,
                    k=k,
                    v=v,
                    **raw,
                    g_bias=w["dt_bias"],
                    initial_state=_initial(plan, cache),
                    output_final_state=True,
                    use_qk_l2norm_in_kernel=True,
                    cu_seqlens=plan.starts,
                )
            if x.dtype == torch.float32:
                # what products read of these is not what is stored
                del seen["w"], seen["k_decayed"]
            cache.state[plan.slots.long()] = after.to(cache.state.dtype)
        elif plan.accepted is None:
            y, _ = run.kimi_step(
                mixed_qkv=conv,
                **raw,
                dt_bias=w["dt_bias"],
                initial_state=cache.state,
                state_indices=plan.slots,
            )
        else:
            q, k, v = self._headed(conv)
            y, _ = run.kimi_window(
                q=q,
                k=k,
                v=v,
                **raw,
                dt_bias=w["dt_bias"],
                initial_state=cache.state,
                cu_seqlens=plan.starts,
                ssm_state_indices=plan.slots,
                num_accepted_tokens=plan.accepted,
            )
        return self._put_out(x, y, torch.sigmoid, seen)

    def _put_out(self, x: Any, y: Any, gate: Any, seen: dict[str, Any]) -> Any:
        """The gated norm of what was read, projected."""
        from torch.nn.functional import linear

        w, epsilon = self.weights, self.sizes.gate_norm_epsilon
        y = y.reshape(len(x), -1, self.sizes.value_dim)
        seen["scan_output"] = y
        hat = normalised(y.float(), epsilon) * w["gate_norm"].float()
        gated = hat * gate(seen["z"].view(y.shape).float())
        seen["gated"] = gated.to(x.dtype).view(len(x), -1)
        return linear(seen["gated"], w["out_proj"])


def _initial(plan: Pass, cache: Cache) -> Any:
    """A copy of what caches hold of each sequence, 0 of those that begin."""
    found = cache.state[plan.slots.long()]
    found[~plan.resumed] = 0
    return found


class MlpLayer:
    """A gated MLP in torch operations, each of which stores its result."""

    def __init__(self, weights: Mapping[str, Any], sizes: Any):
        self.weights, self.sizes = weights, sizes

    def mixer(
        self, x: Any, plans: tuple[Pass, ...], cache: Cache, seen: dict[str, Any]
    ) -> Any:
        """As `DeltaLayer.mixer`; every token goes through alone."""
        from torch.nn.functional import linear, silu

        del plans, cache
        w = self.weights
        seen["up"], seen["gate"] = linear(x, w["up"]), linear(x, w["gate"])
        seen["activated"] = silu(seen["gate"])
        seen["hidden"] = seen["activated"] * seen["up"]
        return linear(seen["hidden"], w["down"])
