"""One step of generation: the right function, the right bytes, honest predictions."""

import json
import math

import numpy as np
import pytest
import torch
import transformers

from experiments import generation
from experiments.decoding.networks import Attention, Kernel, Mamba2, random_step
from experiments.decoding.page import figures, fitted, predicted, publish, speedups
from experiments.decoding.shapes import SHAPES, tiny
from experiments.decoding.timing import fits, line, weights_fit
from experiments.results import Results
from lyapunov.implementations.transformers._source import RIGHT, installed

from ..helpers import gamma


CPU = torch.device("cpu")
MADE = {"device": CPU, "dtype": torch.float64}
UNIT = 2.0**-53


def drawn(layer):
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.3)
    return layer


@torch.no_grad()
@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("name", ["hybrid", "transformer, 32 heads of keys"])
def test_attention_is_the_last_row_of_the_whole(name, folded):
    """Assert it against softmax and products written out, in fp64."""
    shape = tiny(SHAPES[name])
    layer = drawn(Attention(shape, **MADE))
    layer.kernel = Kernel(None, folded)
    keys, values = layer.cache(2, 7, **MADE)
    x = torch.randn(2, shape.width, dtype=torch.float64)
    out = layer(x, (keys, values))
    q = (x @ layer.in_proj.weight.T)[:, : shape.heads * shape.head_dim]
    q = q.unflatten(-1, (shape.heads, shape.head_dim))
    per_group = shape.heads // shape.groups
    rows = []
    for head in range(shape.heads):
        k, v = keys[:, head // per_group], values[:, head // per_group]
        scores = torch.einsum("bd,btd->bt", q[:, head], k) / math.sqrt(shape.head_dim)
        weights = torch.exp(scores) / torch.exp(scores).sum(-1, keepdim=True)
        rows.append(torch.einsum("bt,btd->bd", weights, v))
    theirs = torch.cat(rows, -1) @ layer.out_proj.weight.T
    # products of width and head_dim, a softmax over seven, and products again
    operations = 2 * shape.width + 3 * shape.head_dim + 40
    size = (torch.cat(rows, -1).abs() @ layer.out_proj.weight.T.abs()).max()
    # scores are of order ten: an error of theirs is one of the weights, relative
    allowed = 20 * gamma(operations, UNIT) * float(size)
    assert float((out - theirs).abs().max()) <= allowed


def test_the_token_itself_is_in_the_cache_afterwards():
    shape = tiny(SHAPES["hybrid"])
    layer = drawn(Attention(shape, **MADE))
    cache = layer.cache(1, 5, **MADE)
    before = [one.clone() for one in cache]
    x = torch.randn(1, shape.width, dtype=torch.float64)
    with torch.no_grad():
        layer(x, cache)
        k = (x @ layer.in_proj.weight.T)[0, shape.heads * shape.head_dim :]
    for now, then in zip(cache, before, strict=True):
        assert torch.equal(now[:, :, :-1], then[:, :, :-1])
    kept = cache[0][0, :, -1].flatten()
    assert torch.allclose(kept, k[: len(kept)], rtol=0, atol=1e-12)


def test_mamba2_is_transformers_scan_token_by_token():
    """Assert that steps from an empty cache are transformers' whole forward, fp32."""
    shape = tiny(SHAPES["mamba2"])
    made = {"device": CPU, "dtype": torch.float32}
    ours = drawn(Mamba2(shape, **made))
    config = transformers.Mamba2Config(
        hidden_size=shape.width, num_heads=shape.ssm_heads, n_groups=shape.ssm_groups,
        head_dim=shape.ssm_head_dim, state_size=shape.state, conv_kernel=shape.conv,
        expand=shape.inner // shape.width, num_hidden_layers=1, vocab_size=8,
        chunk_size=4,
    )  # fmt: skip
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    if (installed() or RIGHT) < RIGHT:
        pytest.skip("its gated norm knew no groups")

    theirs = Mamba2Mixer(config, 0)
    weights = ours.state_dict()
    weights["norm.weight"] = weights.pop("gain")
    theirs.load_state_dict(weights)
    x = torch.randn(2, 6, shape.width)
    window, state = ours.cache(2, 1, **made)
    cache = (window.zero_(), state.zero_())
    with torch.no_grad():
        whole = theirs(x)
        steps = torch.stack([ours(x[:, t], cache) for t in range(6)], 1)
    # sums of width, of the window, of the state over six tokens, the norm, of inner
    operations = shape.width + shape.conv + 6 * shape.state + 2 * shape.inner + 40
    size = float(whole.abs().max())
    # the norm divides by about what it is given: errors stay relative, some tenfold
    # where the sums cancel
    allowed = 10 * gamma(operations, 2.0**-24) * size
    assert float((steps - whole).abs().max()) <= allowed
    assert allowed < 0.05 * size


def test_caches_decide_what_comes_next():
    shape = tiny(SHAPES["hybrid"])
    torch.manual_seed(0)
    step = random_step(shape, CPU, torch.float32)
    made = {"device": CPU, "dtype": torch.float32}
    ids = torch.zeros(64, dtype=torch.long)
    with torch.no_grad():
        one, other = (step(ids, step.caches(64, 9, None, **made)) for _ in range(2))
    assert not torch.equal(one, other)
    assert 0 <= int(one.min()) <= int(one.max()) < shape.vocabulary


def test_shapes_are_the_published_ones():
    """Assert counts of layers, and 8.23 and 8.65 billion parameters."""
    counts = {name: [SHAPES[name].layers.count(k) for k in "M*-"] for name in SHAPES}
    assert counts["hybrid"] == [24, 4, 28]
    assert counts["mamba2"] == [56, 0, 0]
    assert counts["transformer"] == [0, 32, 32]
    assert abs(SHAPES["mamba2"].parameters() - 8.23e9) < 0.01e9
    assert abs(SHAPES["hybrid"].parameters() - 8.65e9) < 0.01e9


@pytest.mark.parametrize("name", SHAPES)
def test_bytes_are_those_of_the_tensors(name):
    """Assert parameters and caches against what torch makes of a small shape."""
    shape = tiny(SHAPES[name])
    step = random_step(shape, CPU, torch.bfloat16)
    counted = sum(p.numel() for p in step.parameters())
    assert counted == shape.parameters()
    caches = step.caches(3, 11, None, device=CPU, dtype=torch.bfloat16)
    held = sum(t.nbytes for cache in caches for t in cache)
    assert held == 3 * (shape.per_sequence() + 11 * shape.per_token())
    wide = step.caches(3, 11, torch.float32, device=CPU, dtype=torch.bfloat16)
    held = sum(t.nbytes for cache in wide for t in cache)
    assert held == 3 * (shape.per_sequence(4) + 11 * shape.per_token())


def test_what_does_not_fit_is_known_beforehand():
    shape = SHAPES["transformer"]
    room = 120 * 2**30
    assert fits(shape, 8, 2**17, room, 2) is False  # 137 GB of keys and values
    assert fits(shape, 8, 2**16, room, 2)
    assert fits(shape, 8, 2**17, None, 2)
    weights = 2 * shape.parameters()
    assert weights_fit(shape, weights)
    assert not weights_fit(shape, weights - 1)
    assert weights_fit(shape, None)


def test_the_line_is_found_again():
    true = lambda b, c: 4e-3 + b * (2e-5 + c * 3e-9)
    places = [(b, c) for b in (1, 8, 32) for c in (2048, 8192, 32768)]
    found = line([(b, c, true(b, c)) for b, c in places])
    assert found is not None
    assert (found.start, found.sequence, found.token) == pytest.approx(
        (4e-3, 2e-5, 3e-9), rel=1e-9
    )
    assert found.worst < 1e-12
    assert found.seconds(64, 2**17) == pytest.approx(true(64, 2**17), rel=1e-9)
    assert line([(1, 2048, 1.0)] * 3) is None
    bent = [(b, c, true(b, c) * (1.2 if b == 8 else 1)) for b, c in places]
    off = line(bent)
    assert off is not None
    assert 0.05 < off.worst < 0.2


def row(model, batch, context, seconds, small=False):
    own = {"stage": "step", "model": model, "batch": batch, "context": context}
    own |= {"state": "bf16", "tiny": small, "replays": 20}
    values = {"fits": seconds is not None}
    if seconds is not None:
        values |= {"seconds": seconds, "low": 0.9 * seconds, "high": 1.1 * seconds}
    return {"settings": own, "values": values}


def test_speedups_are_measured_or_predicted_and_never_mixed():
    cost = {"transformer": (4.0, 8.0), "hybrid": (5.0, 1.0)}
    seconds = lambda m, b, c: 1e-3 * (cost[m][0] + cost[m][1] * b * c / 1e5)
    rows = [
        row(m, b, c, None if (m, b, c) == ("transformer", 32, 65536)
            else seconds(m, b, c))
        for m in cost for b in (1, 32) for c in (2048, 65536)
    ]  # fmt: skip
    # three of the Transformer's fit: too few for a line; a fourth makes one
    assert fitted(rows, "transformer") is None
    rows.append(row("transformer", 8, 8192, seconds("transformer", 8, 8192)))
    lines = {m: one for m in cost if (one := fitted(rows, m))}
    told = speedups(rows, lines, "hybrid", "transformer")
    assert [(o["batch"], o["context"]) for o in told["predicted"]] == [
        (8, 8192), (32, 65536)
    ]  # fmt: skip
    assert len(told["measured"]) == 3
    best = figures(rows, lines, ["CARD"])["hybrids.generation_speed"]
    largest = seconds("transformer", 1, 65536) / seconds("hybrid", 1, 65536)
    other = seconds("transformer", 32, 2048) / seconds("hybrid", 32, 2048)
    assert best["value"] == pytest.approx(max(largest, other))
    assert best["low"] == pytest.approx(best["value"] * 0.9 / 1.1)
    assert best["high"] == pytest.approx(best["value"] * 1.1 / 0.9)
    beyond = seconds("transformer", 32, 65536) / seconds("hybrid", 32, 65536)
    assert f"{beyond:.2f} at batch 32, context 65,536" in best["note"]
    assert "8 heads of keys, CARD;" in best["note"]
    apart = predicted(rows, lines)
    assert [(o["model"], o["batch"], o["context"]) for o in apart] == [
        ("transformer", 32, 65536)
    ]
    assert apart[0]["seconds"] == pytest.approx(seconds("transformer", 32, 65536))
    small = [row(m, 1, 64, seconds(m, 1, 64), True) for m in cost]
    assert figures(small, {}, []) == {}


def test_command_times_once_and_says_what_has_no_room(tmp_path, monkeypatch):
    out = tmp_path / "generation.json"
    given = ["--tiny", "--device", "cpu", "--contexts", "8", "16", "--batches", "1",
             "2", "--replays", "2", "--models", "hybrid", "transformer"]  # fmt: skip
    given += ["--out", str(out)]
    from experiments.decoding import timing

    right = timing.fits
    room = lambda shape, batch, *rest: batch == 1 and right(shape, batch, *rest)
    monkeypatch.setattr(timing, "fits", room)
    generation.main(given)
    first = json.loads(out.read_text())
    assert [r["values"]["fits"] for r in first["rows"]] == [
        True,
        True,
        False,
        False,
    ] * 2
    assert first["figures"] == {}
    generation.main(given)
    assert json.loads(out.read_text())["rows"] == first["rows"]
    page = out.with_suffix(".md").read_text()
    assert "no figures" in page
    assert np.isfinite(first["rows"][0]["values"]["seconds"])
    assert out.with_suffix(".png").stat().st_size > 5_000  # in 256 colours


def test_a_card_too_small_for_weights_and_a_spent_budget(tmp_path, monkeypatch, capsys):
    """Assert rows without room, no weights made, and no page unless asked for."""
    from experiments.decoding import networks, timing

    made = []
    monkeypatch.setattr(timing, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(networks, "random_step", lambda *given: made.append(given))
    out = tmp_path / "generation.json"
    given = ["--tiny", "--device", "cpu", "--contexts", "8", "--batches", "1",
             "--models", "hybrid", "--no-page", "--out", str(out)]  # fmt: skip
    generation.main([*given, "--budget", "1e-9"])
    assert "1 rows left" in capsys.readouterr().err
    generation.main(given)
    found = json.loads(out.read_text())["rows"]
    assert [one["values"]["fits"] for one in found] == [False]
    assert not made
    assert not out.with_suffix(".md").exists()


def test_small_shapes_do_not_bend_the_lines_of_the_large(tmp_path):
    out = tmp_path / "generation.json"
    places = [(b, c) for b in (1, 8) for c in (2048, 8192, 32768)]
    for b, c in places:
        for small, seconds in ((False, 4e-3 + b * c * 1e-8), (True, 1e-4)):
            one = row("hybrid", b, c, seconds, small)
            values = one["values"] | {"tokens_per_second": b / seconds}
            values |= {"graph": True, "share_of_copy_rate": None}
            Results(out).add(one["settings"], values, 0.0, {"device": "CARD"})
    publish(out)
    kept = json.loads(out.read_text())
    assert kept["lines"]["hybrid"]["worst"] < 1e-9
    assert len(kept["rows"]) == 2 * len(places)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "--tiny"),
        (["--contexts", "0"], "1 or more"),
        (["--replays", "1"], "2 or more"),
    ],
)
def test_what_cannot_be_timed_is_said(tmp_path, given, says, capsys):
    with pytest.raises(SystemExit) as ended:
        generation.main([*given, "--device", "cpu", "--out", str(tmp_path / "o.json")])
    assert says in f"{ended.value}" + capsys.readouterr().err
