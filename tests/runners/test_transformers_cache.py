"""The cache is found under whatever name a version of transformers has for it."""

import pytest

from lyapunov.implementations.transformers._cache import (
    cache_argument,
    cache_of,
)

from ..helpers import given_cache


class Newer:
    def forward(self, ids, cache=None, use_cache=None):
        return ids


class Older:
    def forward(self, ids, cache_params=None):
        return ids


class Attention:
    def forward(self, ids, past_key_values=None):
        return ids


class Without:
    def forward(self, ids):
        return ids


@pytest.mark.parametrize(
    ("module", "name"),
    [(Newer(), "cache"), (Older(), "cache_params"), (Attention(), "past_key_values"),
     (Without(), None)],
)  # fmt: skip
def test_the_argument_is_named(module, name):
    assert cache_argument(module) == name
    held = object()
    assert given_cache(module, held) == ({name: held} if name else {})
    assert given_cache(module, None) == {}


def test_the_result_is_read():
    held = object()
    for name in ("cache", "past_key_values", "cache_params"):
        assert cache_of({"logits": 1, name: held}) is held
    assert cache_of({"logits": 1}) is None
