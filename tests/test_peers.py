"""The comparison with other libraries: what was recorded, and our own cases."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from analysis import _peers_cases as cases, peers

from .helpers import not_none


@pytest.fixture(scope="module")
def recorded():
    """The committed result."""
    return json.loads(not_none(peers.STUDY.committed).read_text())


def test_targets_are_met_as_recorded(recorded):
    """Assert 50 times on the diagonal system, 1 / 0.8 on Lorenz, by right peers."""
    systems = recorded["systems"]
    for system, least in (("diagonal", 50), ("lorenz", 1 / 0.8), ("henon", 1)):
        rows = systems[system]
        assert rows[0]["library"] == "ours"
        assert rows[0]["right"]
        assert not_none(peers.best_peer(rows))["exponents"] <= rows[0]["exponents"]
        assert peers.ratio(rows) == recorded["peer_over_ours"][system] >= least
    for apart, least in (("lorenz, every 10", 1 / 0.8), ("henon, every 10", 1)):
        assert recorded["peer_over_ours"][apart] >= least
    assert recorded["peer_over_ours"]["diagonal, split by hand"] >= 1
    # what the exponents of the map add up to, whatever the orbit
    for row in systems["henon"]:
        assert abs(row["sum"] - np.log(0.3)) < 1e-5
    assert systems["diagonal"][0]["exponents"] == cases.CHANNELS
    # 4096 terms, a division
    assert systems["diagonal"][0]["error"] <= 5000 * 2.0**-53 * 3


def test_columns_of_the_identity_are_found_wrong(recorded):
    """Assert that libraries that start there are marked, and no time of theirs won."""
    rows = {row["library"]: row for row in recorded["systems"]["diagonal"]}
    for name in ("lyapynov", "clvlib"):
        assert not rows[name]["right"]
    assert not_none(peers.best_peer(list(rows.values())))["right"]


def test_the_table_is_the_record(recorded):
    """Assert the markdown, and what took part with its version."""
    text = not_none(peers.STUDY.committed).with_suffix(".md").read_text()
    assert text == peers.table(recorded["systems"])
    taking_part = {
        row["library"].partition(",")[0]
        for rows in recorded["systems"].values()
        for row in rows
        if row["warm"]
    } - {"ours"}
    assert all(recorded["environment"][name] for name in taking_part)
    assert len(taking_part) >= 5


def test_our_cases_are_right_and_missing_peers_are_named(monkeypatch, tmp_path):
    """Assert short runs of ours, and a row for a library that is not there."""

    def missing():
        raise ImportError("No module named 'nobody'")

    with jax.enable_x64(True):
        for system, makers in cases.cases(small=True).items():
            ours, absent = peers.study(
                system, {"ours": makers["ours"], "nobody": missing}, 2, small=True
            )
            assert ours["warm"] > 0
            assert ours["failed"] is None
            if system == "diagonal":
                assert ours["error"] <= 300 * 2.0**-53 * 3
            assert absent["warm"] is None
            assert "nobody" in absent["failed"]


def test_wrong_answers_lose(tmp_path):
    """Assert that a fast library whose answer is off is not the one to beat."""

    def instant(values):
        return lambda: lambda: np.asarray(values)

    exact = cases.truth("henon")
    rows = peers.study(
        "henon",
        {
            "ours": instant(exact),
            "right": instant(exact + 1e-3),
            "wrong": instant(exact + 0.1),
        },
        3,
    )
    assert [row["right"] for row in rows] == [True, True, False]
    assert not_none(peers.best_peer(rows))["library"] == "right"
    assert "off by" in peers.table({"henon": rows})
    path = Path(tmp_path) / "peers.svg"
    peers.draw({"henon": rows}, path)
    assert path.stat().st_size > 1000
