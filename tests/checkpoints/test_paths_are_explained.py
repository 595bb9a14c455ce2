"""A path that cannot be used is explained, with what to do."""

import json
import os

import pytest

from lyapunov._errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UsageError,
)


def test_missing_path(refused, saved):
    """Assert that a path that is not there is named, with the nearest that is."""
    _, folder = saved(name="mamba-small")
    e = refused(f"{folder.parent}/mamba-smal", CheckpointNotFoundError, "mamba-smal")
    assert str(folder) in e.hint
    refused("./nowhere", CheckpointNotFoundError, "nowhere")
    refused("a/b/c", CheckpointNotFoundError, "a/b/c")
    refused(folder / "other.safetensors", CheckpointNotFoundError, "other.safetensors")


@pytest.mark.parametrize("source", ["", "  ", "a\0b"])
def test_no_path_at_all(refused, source):
    """Assert that text that cannot name anything is a usage error."""
    refused(source, UsageError)


def test_a_name_too_long_for_a_file(refused):
    """Assert that an absurd path is refused, not crashed on."""
    refused("/" + "x" * 5000, CheckpointNotFoundError)


def test_empty_folder(refused, tmp_path):
    """Assert that an empty folder is called empty."""
    refused(tmp_path, CheckpointNotFoundError, "empty folder")


@pytest.mark.parametrize("inner", ["checkpoint-200", "snapshots/0123"])
def test_a_checkpoint_further_down(refused, saved, inner):
    """Assert that a folder of checkpoints leads to the one inside it."""
    _, folder = saved(name=f"run/{inner}")
    run = folder.parents[inner.count("/")]
    e = refused(run, CheckpointNotFoundError, "one below it")
    assert str(folder) in e.hint


def test_folder_without_weights(refused, tmp_path):
    """Assert that the error lists what the folder does hold."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("hello")
    refused(tmp_path, CheckpointNotFoundError, "no weights", "README.md")


def test_weights_without_configuration(refused, saved):
    """Assert that config.json is asked for, by folder and by file."""
    _, folder = saved()
    (folder / "config.json").unlink()
    refused(folder, CheckpointNotFoundError, "config.json")
    refused(folder / "model.safetensors", CheckpointNotFoundError, "config.json")


def test_links_in_a_circle(refused, tmp_path):
    """Assert that symbolic links in a circle and to nowhere are told apart."""
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    refused(tmp_path / "a", CheckpointError, "circle")
    (tmp_path / "c").symlink_to(tmp_path / "gone")
    refused(tmp_path / "c", CheckpointNotFoundError, "link to nowhere")


def test_weights_that_link_in_a_circle(refused, saved):
    """Assert that a circle behind model.safetensors is found as well."""
    _, folder = saved()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "model.safetensors")
    refused(folder, CheckpointError, "circle")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_pipes_are_not_waited_for(refused, saved, name):
    """Assert that a pipe in place of a file is refused at once."""
    _, folder = saved()
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, CheckpointError, "not a regular file", hint=False)


def test_permission_denied(refused, saved, monkeypatch):
    """Assert that an unreadable file is called that, with the remedy."""
    import builtins

    _, folder = saved()
    real = builtins.open

    def denied(file, *args, **kwargs):  # root may read everything: play a user
        if str(file).endswith(".safetensors"):
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", denied)
    e = refused(folder, CheckpointError, "permission denied")
    assert "chmod" in e.hint


def test_revision_of_a_path(refused, saved):
    """Assert that a revision with a path that exists is a usage error."""
    _, folder = saved()
    refused(folder, UsageError, "revision", revision="main")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_description_in_place_of_weights(refused, saved, name):
    """Assert that config.json given as the checkpoint leads to its folder."""
    _, folder = saved(max_shard_size="20KB")
    e = refused(folder / name, UsageError, name)
    assert str(folder) in e.hint


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "/etc/passwd",
        "..",
        "a/b.safetensors",
        "",
        "C:x",
        3,
        "..\\x",
        "x\0",
    ],
)
def test_index_that_leads_out_of_the_folder(refused, saved, shard):
    """Assert that an index may name nothing but files beside it."""
    _, folder = saved(max_shard_size="20KB")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["backbone.norm_f.weight"] = shard
    path.write_text(json.dumps(index))
    refused(folder, CorruptCheckpointError, "outside of its folder")


def test_missing_shard(refused, saved):
    """Assert that a missing shard is named."""
    _, folder = saved(max_shard_size="20KB")
    gone = sorted(folder.glob("model-*.safetensors"))[0]
    gone.unlink()
    refused(folder, CheckpointNotFoundError, gone.name)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', "[", "null"])
def test_broken_index(refused, saved, content):
    """Assert that an index that is none is called corrupt."""
    _, folder = saved(max_shard_size="20KB")
    (folder / "model.safetensors.index.json").write_text(content)
    refused(folder, CorruptCheckpointError, "index.json", hint=False)


def test_index_that_names_what_a_shard_lacks(refused, saved):
    """Assert that index and shards are held to each other."""
    _, folder = saved(max_shard_size="20KB")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["ghost"] = index["weight_map"]["backbone.norm_f.weight"]
    path.write_text(json.dumps(index))
    refused(folder, CorruptCheckpointError, "ghost")
