from .config import (
    AttentionSizes as AttentionSizes,
    ExpertsSizes as ExpertsSizes,
    Mamba1Config as Mamba1Config,
    Mamba1Sizes as Mamba1Sizes,
    Mamba2Sizes as Mamba2Sizes,
    Mamba3Sizes as Mamba3Sizes,
    MlpSizes as MlpSizes,
    NetworkConfig as NetworkConfig,
    SharedSizes as SharedSizes,
)
from .kinds import KINDS as KINDS
