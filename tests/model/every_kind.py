"""Sizes of one small sublayer of every kind, with every optional parameter."""

from lyapunov.sublayers import (
    AttentionSizes,
    ChannelMixSizes,
    ChunkScanSizes,
    ExpertsSizes,
    GatedDeltaSizes,
    KimiDeltaSizes,
    LightningSizes,
    Mamba1Sizes,
    Mamba2Sizes,
    Mamba3Sizes,
    MlpSizes,
    MLSTMSizes,
    NormSizes,
    RGLRUSizes,
    Rwkv4Sizes,
    SelectiveScanSizes,
    SharedSizes,
    ShortConvSizes,
)


ATTENTION = AttentionSizes(8, 2, 2, 4, 0, 1.0, 1.0, 1e-5, norm_behind=True)
MLP = MlpSizes(8, 8, "silu", True, 1e-5, norm_behind=True)
SIZES = {
    "mamba1": Mamba1Sizes(8, 8, 2, 2, 2, 1e-5, heads=2, mixer_norm_epsilon=1e-5),
    "mamba2": Mamba2Sizes(8, 8, 2, 2, 1, 2, 4, 1e-5, 1e-5),
    "mamba3": Mamba3Sizes(8, 8, 2, 2, 1, 2, 1, 1e-4, 1e-5, 1e-5, gate_norm=True),
    "gated_delta": GatedDeltaSizes(8, 1, 2, 2, 4, 2, 1e-5, 1e-5, 2.0, chunk=20),
    "kimi_delta": KimiDeltaSizes(8, 2, 2, 4, 2, 1e-5, 1e-5, gate_rank=2, chunk=20),
    "attention": ATTENTION,
    "mlp": MLP,
    "experts": ExpertsSizes(
        8, 8, 2, 1, "softmax", True, "silu", True, 1e-5,
        shared=MlpSizes(8, 8, "silu", True, 1e-5, norm_front=False),
    ),
    "shared": SharedSizes(ATTENTION, MLP),
    "short_conv": ShortConvSizes(8, 3, 1e-5),
    "rg_lru": RGLRUSizes(8, 8, 2, 3, "gelu_new", 1e-5, norm_offset=1.0),
    "rwkv4": Rwkv4Sizes(8, 12, 1e-5),
    "channel_mix": ChannelMixSizes(8, 12, 1e-5),
    "lightning": LightningSizes(8, 2, 4, 3, 1e-6, keeps=1.5, out_multiplier=2.0),
    "norm": NormSizes(8, 1e-5),
    "mlstm": MLSTMSizes(8, 2, 4, 3, 1e-5, 1e-5),
    # a token's row has eight numbers here as well
    "selective_scan": SelectiveScanSizes(2, 1, gated=True, dt_biased=True),
    "chunk_scan": ChunkScanSizes(2, 1, 1, 4, gated=True, dt_biased=True),
}  # fmt: skip
