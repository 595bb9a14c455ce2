"""The kinds of blocks that are known by their tensors: a line each."""

from collections.abc import Mapping

from ._kind import MixerKind
from ._mamba1 import MAMBA1
from ._mamba2 import MAMBA2
from ._mamba3 import MAMBA3


KINDS: Mapping[str, MixerKind] = {one.kind: one for one in (MAMBA1, MAMBA2, MAMBA3)}
"""Kinds of blocks that are known by their tensors."""
