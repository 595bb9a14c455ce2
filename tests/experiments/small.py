"""A small corpus and small runs."""

import functools

import numpy as np

from experiments.bundled.corpus import Corpus, Document
from experiments.trained.loop import Settings
from experiments.trained.shapes import equal_shapes, hybrid_shape


WIDTH, LAYERS = 32, 2
SHAPES = equal_shapes(WIDTH, LAYERS) | {"hybrid": hybrid_shape(WIDTH)}


@functools.cache
def corpus() -> Corpus:
    """Made-up text with words to learn, and two documents apart from it."""
    rng = np.random.default_rng(11)
    words = [b"state ", b"of ", b"the ", b"union ", b"thou ", b"art ", b"a king.\n"]
    draw = lambda n: b"".join(words[i] for i in rng.integers(len(words), size=n))
    training, one, two = draw(2000), draw(40), draw(40)
    document = lambda text: (Document("made up", "text", ""), (0, len(text)), text)
    return Corpus(
        {"text": training},
        training,
        {"validation": [document(one)], "held_out": [document(two)]},
    )


def settings(kind: str, **changes) -> Settings:
    """Of a run that takes seconds on a CPU."""
    given = dict(
        kind=kind, width=WIDTH, layers=LAYERS, steps=6, batch=4, length=128, share=0.5,
        learning_rate=1e-2, weight_decay=0.1, dropout=0.1, clip=1.0, seed=3, every=2,
        eval_bytes=100, eval_windows=2,
    )  # fmt: skip
    return Settings(**{**given, **changes})
