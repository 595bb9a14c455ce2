"""A Hub id is resolved from the network or the cache; only what is needed is taken."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lyapunov._errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    MissingExtraError,
    UnsupportedCheckpointError,
    UsageError,
)
from lyapunov.checkpoints import open_checkpoint, recognise

from ..helpers import not_none


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fill_cache(cache: Path, folder: Path, name="org/tiny", revision="main") -> Path:
    """Lay out a model as the Hub's cache does: blobs, snapshots of links, refs."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    for part in (snapshot, home / "refs", home / "blobs"):
        part.mkdir(parents=True, exist_ok=True)
    for k, path in enumerate(sorted(folder.iterdir())):
        blob = home / "blobs" / f"{k:040x}"
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    (home / "refs" / revision).write_text(COMMIT)
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the Hub, offline."""
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def online(cache, monkeypatch):
    """A function that plays a Hub with one model; returns what was fetched."""
    import huggingface_hub as hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    fetched = []

    def serve(folder=None, error=None):
        def model_info(self, name, revision=None, timeout=None):
            if error is not None:
                raise error
            files = [
                SimpleNamespace(rfilename=p.name) for p in not_none(folder).iterdir()
            ]
            return SimpleNamespace(sha=COMMIT, siblings=files)

        def download(name, filename, revision=None):
            assert revision == COMMIT
            fetched.append(filename)
            target = cache / "snapshots" / COMMIT / filename
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((folder / filename).read_bytes())
            return str(target)

        monkeypatch.setattr(hub.HfApi, "model_info", model_info)
        monkeypatch.setattr(hub, "hf_hub_download", download)
        return fetched

    return serve


def http_error(kind, status):
    """An error as huggingface_hub raises it."""
    from huggingface_hub import errors

    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return getattr(errors, kind)("no", response=response)


@pytest.mark.parametrize("shards", ["5GB", "20KB"])
def test_cached_model_is_read_offline(cache, saved, shards):
    """Assert that a cached model is read, by name, branch and commit."""
    _, folder = saved(max_shard_size=shards)
    snapshot = fill_cache(cache, folder)
    for source in ("org/tiny", "org/tiny@main", f"org/tiny@{COMMIT}"):
        checkpoint = open_checkpoint(source)
        assert recognise(checkpoint).config.d_model == 32
        assert (checkpoint.source, checkpoint.revision) == (source, COMMIT)
        assert checkpoint.folder == snapshot
    assert open_checkpoint("org/tiny", revision="main").revision == COMMIT


def test_cache_by_environment(tmp_path, saved):
    """Assert that HF_HOME and HF_HUB_OFFLINE are honoured in a process of its own."""
    _, folder = saved()
    fill_cache(tmp_path / "home" / "hub", folder)
    program = (
        "from lyapunov.checkpoints import open_checkpoint, recognise\n"
        "print(recognise(open_checkpoint('org/tiny')).config.d_model)"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "32"


def test_a_path_that_exists_wins(cache, saved, tmp_path, monkeypatch):
    """Assert that a folder named like a Hub id is taken before the Hub."""
    _, folder = saved(name="org/tiny")
    fill_cache(cache, folder)
    assert open_checkpoint("org/tiny").revision == COMMIT
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("org/tiny").revision is None


def test_not_in_the_cache(cache, refused):
    """Assert that an id that is not cached is refused offline, with both remedies."""
    e = refused("org/tiny", CheckpointNotFoundError, "org/tiny", "HF_HUB_OFFLINE")
    assert "hf download org/tiny" in e.hint
    e = refused("org/tiny@v2", CheckpointNotFoundError, "org/tiny@v2")
    assert "--revision v2" in e.hint


def test_other_revision_than_the_cached_one(cache, saved, refused):
    """Assert that another revision is not taken for the one that was asked for."""
    _, folder = saved()
    fill_cache(cache, folder)
    refused("org/tiny@other", CheckpointNotFoundError, "org/tiny@other")
    refused("org/tiny@../../x", CheckpointNotFoundError)


def test_cache_that_holds_a_part(cache, saved, refused):
    """Assert that a half-fetched model is told from one that is not there."""
    _, folder = saved()
    snapshot = fill_cache(cache, folder)
    (snapshot / "model.safetensors").unlink()
    refused("org/tiny", CheckpointNotFoundError, "no weights")


def test_two_revisions(refused, cache):
    """Assert that a revision behind the @ and another as an option are refused."""
    refused("org/tiny@a", UsageError, "two revisions", revision="b")


def test_paths_are_not_asked_of_the_hub(online, refused, tmp_path):
    """Assert that only text like org/name is looked up."""
    online(error=AssertionError("asked"))
    for source in ("./org/tiny", "/org/tiny", "a/b/c", "tiny", "../tiny"):
        refused(source, CheckpointNotFoundError)
    refused("org/tiny.safetensors", CheckpointNotFoundError)
    refused(tmp_path / "tiny", CheckpointNotFoundError)


def test_without_huggingface_hub(refused, monkeypatch):
    """Assert that the missing extra is named with the command that installs it."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    e = refused("org/tiny", MissingExtraError, "huggingface_hub")
    assert e.hint == "pip install 'lyapunov-check[hub]'"


def test_only_what_is_needed_is_fetched(online, saved):
    """Assert that code, a second set of weights and pictures stay where they are."""
    _, folder = saved()
    extra = ("modeling_tiny.py", "pytorch_model.bin", "README.md", "model.onnx")
    for name in (*extra, "tokenizer.json"):
        (folder / name).write_bytes(b"{}")
    fetched = online(folder)
    checkpoint = open_checkpoint("org/tiny@main")
    assert checkpoint.revision == COMMIT
    assert recognise(checkpoint).config.d_model == 32
    assert fetched == ["config.json", "model.safetensors", "tokenizer.json"]


def test_shards_are_fetched(online, saved):
    """Assert that the index and every shard are fetched, once each."""
    _, folder = saved(max_shard_size="20KB")
    fetched = online(folder)
    recognise(open_checkpoint("org/tiny"))
    shards = {path.name for path in folder.glob("model-*.safetensors")}
    assert set(fetched) == {"config.json", "model.safetensors.index.json"} | shards
    assert len(fetched) == len(set(fetched))


def test_index_on_the_hub_that_leads_away(online, saved, refused):
    """Assert that an index on the Hub cannot ask for other paths."""
    _, folder = saved()
    (folder / "model.safetensors").unlink()
    index = '{"weight_map": {"a": "../../../x"}}'
    (folder / "model.safetensors.index.json").write_text(index)
    fetched = online(folder)
    refused("org/tiny", CorruptCheckpointError, "outside of its folder")
    assert not any(Path(name).name == "x" for name in fetched)


def test_weights_of_no_use_are_not_fetched(online, saved, set_config, refused):
    """Assert that a family that is not covered costs no download of weights."""
    _, folder = saved()
    set_config(folder, model_type="gpt2")
    fetched = online(folder)
    refused("org/tiny", UnsupportedCheckpointError, "gpt2")
    assert fetched == ["config.json"]


def test_gguf_on_the_hub(online, saved, refused):
    """Assert that a model of the Hub with GGUF files alone is named for it."""
    _, folder = saved()
    (folder / "model.safetensors").rename(folder / "tiny.gguf")
    online(folder)
    refused("org/tiny", UnsupportedCheckpointError, "GGUF")


@pytest.mark.parametrize(
    ("kind", "status", "error", "word"),
    [
        ("RepositoryNotFoundError", 404, CheckpointNotFoundError, "no model org/tiny"),
        ("RevisionNotFoundError", 404, CheckpointNotFoundError, "no revision"),
        ("GatedRepoError", 403, CheckpointError, "gated"),
        ("HfHubHTTPError", 503, CheckpointNotFoundError, "answered 503"),
    ],
)
def test_what_the_hub_refuses(online, refused, kind, status, error, word):
    """Assert that each refusal of the Hub is told in words."""
    online(error=http_error(kind, status))
    refused("org/tiny@v1", error, word)


class TransportError(Exception):
    """As HTTP libraries raise it: of no class that is known in advance."""


@pytest.mark.parametrize("error", [TransportError("no route"), TimeoutError("late")])
def test_network_that_is_down(online, saved, cache, refused, error):
    """Assert that the cache stands in for a Hub that cannot be reached."""
    online(error=error)
    refused("org/tiny", CheckpointNotFoundError, "cannot be reached")
    _, folder = saved()
    fill_cache(cache, folder)
    assert open_checkpoint("org/tiny").revision == COMMIT


def test_cache_that_cannot_be_written(online, refused):
    """Assert that a full disk is not taken for a network that is down."""
    online(error=OSError(28, "No space left on device", "/cache/blob"))
    refused("org/tiny", CheckpointError, "No space left", "/cache/blob")
