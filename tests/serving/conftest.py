"""Small Mamba-1 and Mamba-2 models, three requests, and servers that run them."""

from typing import Any

import numpy as np
import pytest

import lyapunov
from lyapunov.implementations.dump.file import File
from lyapunov.questions._audit_hand_overs import held_hand_overs
from lyapunov.serving import sglang_hook, vllm_hook
from oracles.checkpoints.configurations import CONFIGURATIONS
from oracles.checkpoints.transformers import make, save

from ..executions.conftest import checkpoint
from .stand_in import Server


__all__ = ["checkpoint"]

SEQ = 24


@pytest.fixture(scope="session")
def models(checkpoint, tmp_path_factory):
    """Kind -> a small model of it."""
    folder = tmp_path_factory.mktemp("mamba2")
    save(make("mamba2", **CONFIGURATIONS["mamba2"]["one group"]), folder)
    return {
        "mamba1": lyapunov.load(str(checkpoint("plain")[0])),
        "mamba2": lyapunov.load(str(folder)),
    }


@pytest.fixture
def served(models, tmp_path):
    """A function: kind, calls -> the dump of request a, and its model."""

    def run(kind, *calls, write=True, server=None, **settings):
        model = models[kind]
        server = server or a_server(model, **settings)
        hook = a_hook(server)
        server.run(*calls, around=hook)
        path = tmp_path / f"run{len(list(tmp_path.iterdir()))}.npz"
        return (model, path, hook.write(path)) if write else (model, path, hook)

    return run


def a_server(model, **settings):
    """A server of a model, and the texts of its requests."""
    vocab = model.config.vocab_size
    draw = lambda seed: np.random.default_rng(seed).integers(0, vocab, SEQ)
    return Server(model, {name: draw(i) for i, name in enumerate("abc")}, **settings)


def a_hook(server, request: str | None = "a", **settings) -> Any:
    """The hook of a request on its server."""
    given: Any = {
        "implementation": "mamba_ssm",
        "precision": server.precision,
        "request": request,
        **settings,
    }
    if server.sglang:
        return sglang_hook(server.network, state_precision="fp32", **given)
    return vllm_hook(server.worker, context=server.context, **given)


def hand_overs(model, path) -> Any:
    """Those of the dump's one run, held."""
    dump = File(path)
    dump.check(model)
    return held_hand_overs(model, dump)
