"""Large models of random weights: published sizes, and memory as of few layers."""

import argparse
import json

import numpy as np
import pytest
from transformers.models.nemotron_h.configuration_nemotron_h import NemotronHConfig

import lyapunov
from analysis._first_answer_models import quickly_drawn, save
from analysis._large_models import WHOLE, write
from analysis.large_hybrid import CASES, STUDY, Case
from lyapunov.checkpoints.files._safetensors import read_header


assert STUDY.committed is not None
COMMITTED = STUDY.committed
# As published, in billions.
PUBLISHED = {
    "nemotron-h-8b": 8.10,
    "granite-4-h-small": 32.2,
    "granite-4-h-tiny": 6.94,
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_model_is_of_its_published_size_and_takes_no_disk(name, tmp_path):
    """Assert it of sparse files, which are read as what they are."""
    write(tmp_path / "m", name, WHOLE[name], sparse=True)
    model = lyapunov.load(tmp_path / "m")
    assert len(model.sublayers) == WHOLE[name]
    assert round(model.layout.n_params / 1e9, 2) == pytest.approx(
        PUBLISHED[name], rel=0.005
    )
    files = [file.stat() for file in (tmp_path / "m").iterdir()]
    assert sum(file.st_size for file in files) > 2 * model.layout.n_params
    assert sum(file.st_blocks for file in files) * 512 < 2**25
    raw = model.layout.layer(0)
    assert not np.any(raw["out_proj"])
    assert np.all(raw["norm"] == 1)


def test_nemotron_s_configuration_is_the_published_one(tmp_path):
    """Assert transformers' defaults, which are Nemotron-H-8B's, of all that is written
    but the order of sublayers; of that NVIDIA's places of attention."""
    write(tmp_path / "m", "nemotron-h-8b", WHOLE["nemotron-h-8b"], sparse=True)
    written = json.loads((tmp_path / "m" / "config.json").read_text())
    assert written.pop("architectures") == ["NemotronHForCausalLM"]
    assert written.pop("torch_dtype") == "bfloat16"
    order = written.pop("hybrid_override_pattern")
    assert [i for i, kind in enumerate(order) if kind == "*"] == [7, 18, 29, 40]
    assert order.replace("*", "") == "M-" * 24
    default = NemotronHConfig()
    assert written == {name: getattr(default, name) for name in written}


@pytest.mark.parametrize("text", ["nemotron", "nemotron-h-8b", "granite-4-h-tiny:81",
    "nemotron-h-8b:0", "nemotron-h-8b:3:dense"])  # fmt: skip
def test_a_case_that_there_is_not_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        Case.named(text)
    for named in (*CASES["cpu"], *CASES["gpu"], "granite-4-h-small:80:sparse"):
        assert str(Case.named(named)) == named


@pytest.mark.skipif(not COMMITTED.exists(), reason="not measured yet")
def test_memory_of_the_committed_cases_does_not_grow_with_depth():
    """Assert that nothing failed or was violated, and that of a model that was measured
    at two depths the deeper takes at most a tenth more, of the host and of a GPU; from
    six sublayers on, of which one is at work, one is bounded and one read ahead."""
    found = json.loads(COMMITTED.read_text())["cases"]
    depths: dict[tuple, list] = {}
    for entry in found:
        assert "failed" not in entry
        kinds = [
            one for p in entry["precisions"].values() for one in p["kinds"].values()
        ]
        assert not any(kind["violations"] for kind in kinds)
        case = Case.named(entry["case"])
        if not case.sparse and case.sublayers >= 6:
            of = case.model, entry["device"], entry["tokens"]
            depths.setdefault(of, []).append((case.sublayers, entry))
    assert any(len(one) > 1 for one in depths.values())
    for one in depths.values():
        (_, least), *more = sorted(one, key=lambda pair: pair[0])
        for _, entry in more:
            for memory in ("peak_gib", "device_peak_gib"):
                if least[memory] is not None:
                    assert entry[memory] <= 1.1 * least[memory], (entry["case"], memory)


def test_what_is_repeated_is_drawn_anew_in_every_row(tmp_path):
    """Assert it of a matrix in a file, which ends as its header says."""
    shapes = {"w": (3000, 2000), "v": (5, 7)}
    rng = np.random.default_rng(0)
    drawn = {name: quickly_drawn(name, shape, rng) for name, shape in shapes.items()}
    save(tmp_path / "m", {}, [drawn | {"hole": (2, 3)}])
    found, _ = read_header(tmp_path / "m" / "model-00001.safetensors")
    rows = found["w"].read().astype(np.float32)
    assert len({row.tobytes() for row in rows}) == 3000
    assert abs(rows.std() * 2000**0.5 - 1) < 0.01
    np.testing.assert_array_equal(found["v"].read(), np.asarray(drawn["v"]))
    assert not found["hole"].read().any()
