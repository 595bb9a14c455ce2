"""Sizes of a network's sublayers from the settings of a `config.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import sublayers
from ._settings import (
    activation,
    expanded,
    head_count,
    head_size,
    integer,
    limits,
    natural,
    positive,
    rank,
    rotary,
    switch,
)
from .files._files import disagreeing


MAMBA1_NAMES = (
    *("mamba_expand", "mamba_d_state", "mamba_d_conv", "mamba_dt_rank"),
    *("mamba_conv_bias", "mamba_proj_bias"),
)
"""What hybrids call a Mamba-1 mixer's settings."""


@dataclass(frozen=True)
class NetworkSettings:
    """Read the sizes of one network's sublayers.

    Further fields of what a method makes are given to it by name.

    **Arguments:**

    - `settings`: `config.json`, or a part of it.
    - `d_model`: width of the residual.
    - `epsilon`: of the norms.
    """

    settings: Mapping[str, Any]
    d_model: int
    epsilon: float

    @classmethod
    def of(
        cls, settings: Mapping[str, Any], d_model: int, norm: str, epsilon: float
    ) -> "NetworkSettings":
        """Read them as transformers has them.

        **Arguments:**

        - `norm`: what the epsilon is called.
        - `d_model`, `epsilon`: where the settings do not say.
        """
        d_model = integer(settings, "hidden_size", d_model)
        return cls(settings, d_model, positive(settings, norm, epsilon))

    def config(
        self,
        blocks: Sequence[Any],
        *,
        vocab_size: int = 32000,
        tied: bool = False,
        **others: Any,
    ) -> "sublayers.NetworkConfig":
        """Make the network of these sublayers, as transformers has it.

        **Arguments:**

        - `vocab_size`, `tied`: where the settings do not say.
        """
        vocab_size = integer(self.settings, "vocab_size", vocab_size)
        if "tie_embeddings" not in others:
            tied = switch(self.settings, "tie_word_embeddings", tied)
            others["tie_embeddings"] = tied
        return sublayers.NetworkConfig(
            vocab_size=vocab_size,
            padded_vocab_size=vocab_size,
            d_model=self.d_model,
            sublayers=tuple(blocks),
            **({"residual_in_fp32": False, "norm_epsilon": self.epsilon} | others),
        )

    def mamba1(
        self, names: Sequence[str] = MAMBA1_NAMES, **others: Any
    ) -> "sublayers.Mamba1Sizes":
        """Make a Mamba-1 mixer.

        **Arguments:**

        - `names`: of the settings for expansion, states, taps, rank and both biases.
        """
        expand, d_state, d_conv, dt_rank, conv_bias, proj_bias = names
        return sublayers.Mamba1Sizes(
            d_model=self.d_model,
            d_inner=expanded(self.settings, self.d_model, expand),
            d_state=integer(self.settings, d_state, 16),
            d_conv=integer(self.settings, d_conv, 4),
            dt_rank=rank(self.settings, dt_rank, self.d_model),
            norm_epsilon=self.epsilon,
            conv_bias=switch(self.settings, conv_bias, True),
            proj_bias=switch(self.settings, proj_bias, False),
            **others,
        )

    def mamba2(
        self,
        d_inner: int,
        heads: int,
        names: Mapping[str, tuple[str, Any]],
        **others: Any,
    ) -> "sublayers.Mamba2Sizes":
        """Make a Mamba-2 mixer whose heads fall evenly into groups.

        **Arguments:**

        - `names`: for d_state, groups, d_conv, chunk, conv_bias and proj_bias, what
            the setting is called, and what it is where there is none.
        """
        read: dict[str, Any] = {
            field: (switch if field.endswith("bias") else integer)(self.settings, *name)
            for field, name in names.items()
        }
        own = {
            "gate_norm_epsilon": self.epsilon,
            "dt_limit": limits(self.settings, "time_step_limit"),
            "norm_groups": read["groups"],
        }
        return divided(
            sublayers.Mamba2Sizes(
                d_model=self.d_model,
                d_inner=d_inner,
                heads=heads,
                norm_epsilon=self.epsilon,
                **(own | read | others),
            )
        )

    def attention(
        self,
        heads: tuple[int, int],
        head_dim: int,
        turning: tuple[int, float] = (0, 10000.0),
        **others: Any,
    ) -> "sublayers.AttentionSizes":
        """Make an attention, without positions unless told how they turn.

        **Arguments:**

        - `heads`: of the queries, and of keys and values.
        - `turning`: channels of a head that turn, and the base of their rates.
        """
        return sublayers.AttentionSizes(
            d_model=self.d_model,
            heads=heads[0],
            kv_heads=heads[1],
            head_dim=head_dim,
            rotary=turning[0],
            theta=turning[1],
            norm_epsilon=self.epsilon,
            **({"scale": head_dim**-0.5} | others),
        )

    def llama_attention(
        self, *, turns: bool = True, share: float | None = None, **others: Any
    ) -> "sublayers.AttentionSizes":
        """Make an attention with the settings that Llama has.

        **Arguments:**

        - `turns`: whether there are positions. `share`: as for `rotary`.
        """
        heads = head_count(self.settings, 32)
        head_dim = head_size(self.settings, self.d_model, heads[0])
        if turns:
            others["turning"] = rotary(self.settings, head_dim, share)
        return self.attention(heads, head_dim, **others)

    def mlp(
        self,
        hidden: int,
        *,
        size: str = "intermediate_size",
        act: str = "silu",
        act_key: str = "hidden_act",
        gated: bool = True,
        **others: Any,
    ) -> "sublayers.MlpSizes":
        """Make an MLP.

        **Arguments:**

        - `hidden`, `act`: its width and activation, where the settings do not say.
        - `size`, `act_key`: what these are called.
        """
        return sublayers.MlpSizes(
            d_model=self.d_model,
            d_hidden=integer(self.settings, size, hidden),
            activation=activation(self.settings, act, act_key),
            gated=gated,
            norm_epsilon=self.epsilon,
            **others,
        )

    def experts(
        self, mlp: "sublayers.MlpSizes", experts: int, d_hidden: int, **others: Any
    ) -> "sublayers.ExpertsSizes":
        """Make so many experts of this width, like the MLP, of which some are chosen.

        **Raises:** `CorruptCheckpointError` where more are chosen than there are.
        """
        chosen = integer(self.settings, "num_experts_per_tok", 2)
        if chosen > experts:
            raise disagreeing(f"config.json: {chosen} of {experts} experts are chosen")
        groups = natural(self.settings, "n_group", 1) or 1
        best = natural(self.settings, "topk_group", 1) or 1
        each = experts // groups
        if groups > 1 and (each * groups != experts or each < 2 or best > groups):
            raise disagreeing(
                f"config.json: {experts} experts in {groups} groups, of which {best}"
                " are chosen"
            )
        if best < groups and chosen > best * each:
            raise disagreeing(
                f"config.json: {chosen} experts are chosen of {best} groups of {each}"
            )
        return sublayers.ExpertsSizes(
            groups=groups,
            chosen_groups=best,
            d_model=self.d_model,
            d_hidden=d_hidden,
            experts=experts,
            chosen=chosen,
            activation=mlp.activation,
            gated=mlp.gated,
            norm_epsilon=self.epsilon,
            **others,
        )


def divided(sizes: "sublayers.Mamba2Sizes") -> "sublayers.Mamba2Sizes":
    """The sizes, if heads fall evenly into groups."""
    if sizes.heads % sizes.groups or sizes.d_inner % sizes.norm_groups:
        raise disagreeing(
            f"config.json: {sizes.heads} heads do not fall into {sizes.groups} groups"
        )
    return sizes
