"""Checkpoints shared among processes: one report, as if one process had done all."""

import io
import json
import os
import pickle
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lyapunov._errors import UsageError
from lyapunov.command._job import FOREVER, FORM, Job, _Found, joined, parsed
from lyapunov.command._session import _Outcome
from oracles.checkpoints.mamba1 import save_transformers
from oracles.networks.mamba1 import Sizes, random_weights

from .conftest import example


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_every_checkpoint_is_one_process_s(processes):
    """Assert that shares are a partition, the first never smaller than another."""
    sources = [f"m{i}" for i in range(5)]
    shares = [Job(i, processes).share(sources) for i in range(processes)]
    assert sorted(one for share in shares for one in share) == sources
    assert max(map(len, shares)) == len(shares[0]) <= -(-len(sources) // processes)


@pytest.mark.parametrize(
    "where",
    ["", "2", "node0:1,0", "node0,0/2", "node0:1,2/2", "node0:1,-1/2", "node0:x,0/2"],
)
def test_another_form_is_refused_before_any_work(where, run):
    """Assert exit code 2 and what to type."""
    with pytest.raises(UsageError, match="HOST:PORT"):
        parsed(where)
    done = run("--distributed", where)
    assert done.exit_code == 2
    assert "hint: of two processes: --distributed node0:4321,0/2" in done.stderr


def test_what_was_typed_goes_to_jax(monkeypatch):
    """Assert addresses with ports, of IPv6 as well, and that alone nobody is asked."""
    assert parsed("[::1]:4321,1/2") == {
        "coordinator_address": "[::1]:4321",
        "process_id": 1,
        "num_processes": 2,
    }
    assert joined(None) == Job(0, 1)

    def nobody(**given):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody\nat all")

    monkeypatch.setattr("jax.distributed.initialize", nobody)
    for where in ("auto", "node0:1,0/2"):
        with pytest.raises(UsageError, match=r"DEADLINE_EXCEEDED: nobody\nhint"):
            joined(where)


def test_only_results_come_from_another_process():
    """Assert that a report comes as it was, and that nothing else is made or called."""
    found = [
        _Outcome("m", example.example_report(2)),
        _Outcome("n", error={"code": "x"}),
    ]
    assert _Found(io.BytesIO(pickle.dumps(found))).load() == found
    for other in (os.system, subprocess.Popen, FORM, UsageError("x"), Job(), parsed):
        with pytest.raises(pickle.UnpicklingError, match="is no result"):
            _Found(io.BytesIO(pickle.dumps(other))).load()


class Service(dict):
    """JAX's, of processes that come one after another, the first last."""

    key_value_set_bytes = dict.__setitem__

    def blocking_key_value_get_bytes(self, key, timeout):
        return self[key]

    def wait_at_barrier(self, name, timeout):
        assert timeout == FOREVER


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_the_first_has_everything_in_order_and_no_other_anything(
    processes, monkeypatch
):
    """Assert it of five checkpoints, also of a process that has none of them; and that
    lists that differ are refused."""
    names = [f"m{i}" for i in range(5)]
    here = SimpleNamespace(client=Service())
    monkeypatch.setattr("jax._src.distributed.global_state", here)
    monkeypatch.setattr("jax.distributed.shutdown", lambda: None)
    for process in reversed(range(processes)):
        job = Job(process, processes)
        own = [_Outcome(name, error={"code": name}) for name in job.share(names)]
        everything = job.gathered(names, own)
        assert (everything == []) == bool(process)
    assert [outcome.source for outcome in everything] == names
    with pytest.raises(UsageError, match="process 1 was given other checkpoints"):
        job.gathered([names[0], "other", *names[2:]], own)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three checkpoints of one shape, and the name of none."""
    sizes = Sizes(vocab=50, d_model=16, d_state=4, dt_rank=2, layers=2)
    home = tmp_path_factory.mktemp("job")
    for seed in range(3):
        weights = random_weights(np.random.default_rng(seed), sizes)
        save_transformers(home / f"m{seed}", weights, sizes)
    return [str(home / name) for name in ("m0", "m1", "nowhere", "m2")]


def started(folders, *more: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "lyapunov", *folders, "--json", "--no-progress"]
    return subprocess.Popen(
        [*command, "--effort=quick", "--length=12", "--precision=bf16", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
    )


def without_time(document):
    """A document without what differs from run to run."""
    if isinstance(document, dict):
        return {
            key: without_time(value)
            for key, value in document.items()
            if key not in ("seconds", "command", "date")
        }
    return [*map(without_time, document)] if isinstance(document, list) else document


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_two_processes_give_the_report_of_one(folders):
    """Assert one document of all, in order, figures and errors bit for bit, and the
    worst exit code; and silence of the other process. Two as Open MPI starts them."""
    port = str(free_port())
    two = [
        started(
            folders,
            *("--distributed", "auto"),
            OMPI_MCA_orte_hnp_uri="4096.0;tcp://127.0.0.1:1",
            OMPI_COMM_WORLD_SIZE="2",
            OMPI_COMM_WORLD_RANK=str(i),
            OMPI_COMM_WORLD_LOCAL_RANK=str(i),
            JAX_COORDINATOR_PORT=port,
        )
        for i in range(2)
    ]
    # in a job as well, which compiles before it knows how small a model is
    alone = started(folders, "--distributed", f"127.0.0.1:{free_port()},0/1")
    told = [process.communicate(timeout=300) for process in (*two, alone)]
    (first, _), (other, _), (expected, _) = told
    assert [process.returncode for process in (*two, alone)] == [2, 0, 2], told
    assert other == ""
    assert without_time(json.loads(first)) == without_time(json.loads(expected))
    assert len(json.loads(first)["reports"]) == len(folders)


@pytest.mark.slow
def test_processes_with_other_checkpoints_give_no_report(folders):
    """Assert the error of the first, which knows."""
    port = free_port()
    given = [folders[:2], [folders[1], folders[0]]]
    two = [
        started(own, "--distributed", f"127.0.0.1:{port},{i}/2")
        for i, own in enumerate(given)
    ]
    told, _ = two[0].communicate(timeout=300)
    two[1].communicate(timeout=300)
    assert two[0].returncode == 2
    assert "other checkpoints" in json.loads(told)["error"]["message"]
