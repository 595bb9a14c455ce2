from ._sublayer import (
    AbstractSublayer as AbstractSublayer,
    Counts as Counts,
    Dynamics as Dynamics,
    HandedOn as HandedOn,
)
from .attention import AttentionSizes as AttentionSizes
from .channel_mix import ChannelMixSizes as ChannelMixSizes
from .chunk_scan import ChunkScanSizes as ChunkScanSizes
from .config import NetworkConfig as NetworkConfig
from .experts import ExpertsSizes as ExpertsSizes
from .gated_delta import GatedDeltaSizes as GatedDeltaSizes
from .kimi_delta import KimiDeltaSizes as KimiDeltaSizes
from .kinds import KINDS as KINDS
from .lightning import LightningSizes as LightningSizes
from .mamba1 import Mamba1Sizes as Mamba1Sizes
from .mamba2 import Mamba2Sizes as Mamba2Sizes
from .mamba3 import Mamba3Sizes as Mamba3Sizes
from .mlp import MlpSizes as MlpSizes
from .mlstm import MLSTMSizes as MLSTMSizes
from .norm import NormSizes as NormSizes
from .rg_lru import RGLRUSizes as RGLRUSizes
from .rwkv4 import Rwkv4Sizes as Rwkv4Sizes
from .selective_scan import SelectiveScanSizes as SelectiveScanSizes
from .shared import SharedSizes as SharedSizes
from .short_conv import ShortConvSizes as ShortConvSizes
