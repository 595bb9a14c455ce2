"""Which configurations of a family a quick run takes."""

import pytest

from oracles.checkpoints.configurations import CASES, CONFIGURATIONS


_FIRST = {(family, next(iter(named))) for family, named in CONFIGURATIONS.items()}


QUICK = [
    pytest.param(*case, marks=[] if case in _FIRST else [pytest.mark.slow])
    for case in CASES
]
"""One configuration of each family in a quick run, the others in a slow one."""
