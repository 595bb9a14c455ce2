"""Training steps timed: rows, what is refused, and the figures made of them."""

import json
from itertools import pairwise

import pytest
import torch

from experiments import speed
from experiments.compare import PAPER, collect, judge, read
from experiments.finetuning import networks
from experiments.results import Results
from experiments.throughput import bench, page, shapes
from experiments.throughput.shapes import SHAPES, Case, cases, contrast, published


SMALL = ["--length", "16", "--steps", "3", "--batches", "2", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The command's file, run cut in two; and the first part's rows."""
    out = tmp_path_factory.mktemp("speed") / "speed.json"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    speed.main([*SMALL, "--families", "gpt_neox", "--no-page", "--out", str(out)])
    before = Results(out).rows()
    assert not out.with_suffix(".md").exists()
    speed.main([*SMALL, "--out", str(out)])
    torch.set_num_threads(threads)
    return out, before


@pytest.fixture
def few(monkeypatch):
    """Two of a family's cases: LoRA, and behind it all parameters."""
    some = lambda *given: cases(*given)[1::-1]
    monkeypatch.setattr(shapes, "cases", some)


def test_rows_are_whole_and_none_is_measured_again(both):
    out, before = both
    rows = Results(out).rows()
    assert [row for row in rows if row["settings"]["family"] == "gpt_neox"] == before
    assert len(rows) == 2 * (6 + 7)
    for row in rows:
        own, values = row["settings"], row["values"]
        assert len(values["step_seconds"]) == 3
        median = sorted(values["step_seconds"])[1]
        tokens = own["batch"] * own["length"]
        assert values["tokens_per_second"] == pytest.approx(tokens / median, rel=0.01)
        assert values["peak_bytes"] is None  # unknown on a CPU, not 0
        assert values["without_gradient"] == values["zero_gradient"] == 0
        assert values["skipped"] == 0
        assert values["tf32"] is False
        # random weights know nothing: 5.5 nats of 256 words, and what their spread adds
        assert 5.0 < values["loss"] < 7.5


def test_counted_memory_against_sums_by_hand(both):
    out, _ = both
    width, layers, inner, rank, state = 64, 2, 128, 8, 16
    dt = 4
    layer = 2 * inner * width + inner * (4 + 1) + (dt + 2 * state) * inner
    layer += inner * (dt + 1) + inner * (state + 1) + inner * width + width
    full = layers * layer + 256 * width + width
    lora = rank * ((width + 2 * inner) + (inner + dt + 2 * state) + (dt + inner))
    lora = layers * (lora + rank * (inner + width))
    for method, path, parameters, trained in (
        ("full", "fused", full, full),
        ("full", "open", full, full),
        ("lora-all", "open", full + lora, lora),
    ):
        of = {"family": "mamba1", "method": method, "path": path}
        values = Results(out).rows(**of)[0]["values"]
        assert values["parameters"] == parameters
        assert values["trained_parameters"] == trained
        assert values["parts"]["weights"] == 4 * parameters
        assert values["parts"]["gradients"] == 4 * trained
        # two moments, and a count of steps a tensor
        counts = 4 * values["trained_tensors"]
        assert values["parts"]["optimizer"] == 8 * trained + counts


def test_page_has_a_line_a_row_and_no_figure_of_a_cpu(both):
    out, _ = both
    assert Results(out).read()["figures"] == {}
    text = out.with_suffix(".md").read_text()
    assert text.count("| tiny |") == len(Results(out).rows())
    assert "fp32 open" in text
    assert out.with_suffix(".png").stat().st_size > 1000
    out.with_suffix(".md").unlink()
    speed.main(["--page-only", "--out", str(out)])
    assert out.with_suffix(".md").read_text() == text


@pytest.mark.usefixtures("few")
def test_adapters_without_a_gradient_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(networks, "_open", lambda inner: None)
    out = tmp_path / "speed.json"
    call = [*SMALL, "--families", "mamba1", "--out", str(out), "--batches", "1"]
    with pytest.raises(SystemExit, match=r"get no gradient, such as .*lora_"):
        speed.main([*call, "--no-page"])
    methods = {row["settings"]["method"] for row in Results(out).rows()}
    assert "lora-all" not in methods  # no row of a step that trains less
    assert "full" in methods  # and the others went on
    assert "Refused" in capsys.readouterr().err


@pytest.mark.usefixtures("few")
def test_out_of_memory_is_a_row_and_not_the_end(tmp_path, monkeypatch):
    step = bench.Bench.step

    def small(self, ids):
        if len(ids) > 1:
            raise torch.OutOfMemoryError
        return step(self, ids)

    monkeypatch.setattr(bench.Bench, "step", small)
    out = tmp_path / "speed.json"
    call = [*SMALL, "--families", "gpt_neox", "--out", str(out)]
    speed.main([*call, "--no-page"])
    assert len(Results(out).rows()) == 2 * 2
    for row in Results(out).rows():
        fits = row["settings"]["batch"] == 1
        assert row["values"]["out_of_memory"] is not fits
        assert (row["values"]["tokens_per_second"] is not None) is fits


def made_up(card="GPU", batch=8, lost=()):
    """Rows of Mamba-1 of which LoRA is 1, 2, 3 and 4 times as fast, with half the
    memory and 0.1 less for each larger shape; `lost`: shapes whose fp32 did not fit."""
    rows = []
    for i, shape in enumerate(("130m", "370m", "790m")):
        for j, case in enumerate(published("mamba1", shape)):
            values = {
                "out_of_memory": False,
                "tokens_per_second": 100.0 * (j or 1) * (1 if j == 0 else 1 + i),
                "bytes_per_token": 1e6 if j == 0 else 1e6 * (0.5 - 0.1 * i),
                "parts": {"weights": 1, "gradients": 1, "optimizer": 1, "rest": 1},
                "trained_parameters": 1,
                "without_gradient": 0,
                "zero_gradient": 0,
                "skipped": 0,
            }
            if j == 0 and shape in lost:
                values = bench.out_of_memory()
            settings = {"card": card, "batch": batch, "length": 512, "rank": 8}
            settings |= {k: getattr(case, k) for k in Case.__dataclass_fields__}
            rows.append({"settings": settings, "values": values})
    return rows


def told(rows, batch=8):
    return page.figures(page.chosen(page.groups(rows), batch, 512, 8))


def test_figures_against_arithmetic_by_hand():
    found = told(made_up())
    # means of four: 2.5 times 1, 2, 3; Student's t of two degrees: 4.302653
    times = found["speed.tokens_per_second"]
    assert times["value"] == pytest.approx(5.0)
    half = 4.302653 * 2.5 / 3**0.5
    assert times["low"] == pytest.approx(5 - half, rel=1e-6)
    assert times["high"] == pytest.approx(5 + half, rel=1e-6)
    memory = found["speed.memory_per_token"]
    assert memory["value"] == pytest.approx(-60.0)
    half = 4.302653 * 10 / 3**0.5
    assert memory["high"] == pytest.approx(-60 + half, rel=1e-6)
    assert times["n"] == memory["n"] == 3
    assert "batch 8, 512 tokens" in times["note"]
    assert "GPU" in times["note"]
    assert "speed.tokens_per_second.over_open_path" not in found  # was not measured


def test_a_shape_that_did_not_fit_is_left_out_and_named(tmp_path):
    rows = made_up(lost=["790m"])
    found = told(rows)["speed.tokens_per_second"]
    assert (found["n"], found["value"]) == (2, pytest.approx(3.75))
    assert "without 790m" in found["note"]
    one = told(made_up(lost=["370m", "790m"]))
    assert one["speed.tokens_per_second"]["low"] is None  # one shape has no interval
    out = tmp_path / "speed.json"
    results = Results(out)
    for row in rows:
        results.add(row["settings"], row["values"], 1.0, {"device": "GPU"})
    page.publish(out, 8, 512, 8)
    text = out.with_suffix(".md").read_text()
    assert "| 790m | full fp32 | out of memory |" in text
    assert "| 130m | lora-some bf16 | 400 | 4 | 0.5 | -50 |" in text
    assert "| 790m | lora-all fp16 | 300 | - | 0.3 | - |" in text


def test_units_are_those_published(tmp_path):
    # whichever batch was found first, the figures are of the one that is asked for
    rows = [*made_up(card="CPU"), *made_up(batch=1, lost=["790m"]), *made_up()]
    found = told(rows)
    assert found["speed.memory_per_token"]["n"] == 3
    assert found["speed.memory_per_token.batch_1"]["n"] == 2
    assert told(rows, batch=4) == told(made_up(card="CPU")) == {}
    (tmp_path / "speed.json").write_text(json.dumps({"figures": found}))
    ours = collect(tmp_path)
    lines = [row for row in read(PAPER)["row"] if row["key"].startswith("speed.")]
    assert len(lines) == 2
    for row in lines:
        assert judge(row, ours[row["key"]])["verdict"] == "agrees"  # wide intervals


def test_published_rows_come_first():
    every = cases(list(SHAPES), [s for f in SHAPES.values() for s in f])
    assert len(every) == len(set(every)) == 6 * (7 + 6)
    last = [case for case in every if case in contrast(case.family, case.shape)]
    assert every[-len(last) :] == last
    sizes = [c.parameters() for c in every if c.family == "mamba1"][:25]
    assert all(a <= b for a, b in pairwise(sizes))
    # the names say how large: 129, 368, 772, 1345 and 2732 million are published
    assert sizes[20] == pytest.approx(2.73e9, rel=0.02)
    assert sizes[0] == pytest.approx(0.129e9, rel=0.03)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--shapes", "7b"], "no shape '7b'"),
        (["--shapes", "160m", "--families", "mamba1"], "no shape '160m'"),
        (["--shapes", "160m"], "mamba1 has none of"),
        (["--batches", "8", "0"], "--batches is less than 1"),
        (["--steps", "0"], "--steps is less than 1"),
        (["--budget", "-1"], "is negative"),
        (["--most", "nan"], "is negative"),
        (["--device", "abacus"], "no device 'abacus'"),
        (["--device", "meta"], "nothing is measured on meta"),
        (["--page-only"], "has no rows"),
    ],
)
def test_bad_arguments_get_a_message(tmp_path, given, said):
    out = tmp_path / "speed.json"
    with pytest.raises(SystemExit, match=said):
        speed.main([*given, "--out", str(out)])
    assert not out.exists()


@pytest.mark.usefixtures("few")
def test_budget_leaves_out_what_would_take_too_long(tmp_path, capsys):
    call = [*SMALL, "--families", "gpt_neox", "--no-page"]
    for budget, least, most in (("1e-9", 0, 0), ("600", 4, 4)):
        out = tmp_path / f"{budget}.json"
        speed.main([*call, "--budget", budget, "--out", str(out)])
        assert least <= len(Results(out).rows()) <= most
        shown = capsys.readouterr().err
        assert ("rows are left; the same command goes on" in shown) is (most == 0)
