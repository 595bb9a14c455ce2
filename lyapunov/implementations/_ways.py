"""Ways to run one and the same text, and which calls each is made of.

A way is written as users write it: `whole`, `steps`, `chunks:64`, `chunks:61,rest`,
`padded_left:5`, `padded_right:3,256`, `batched:1`, `packed:100`, `initial_state:100`,
`resumed:64`, `preempted:100`, `mixed:100`.
In exact arithmetic all of them give the same numbers for the same tokens; what an
execution makes of them differs by rounding and by nothing else.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .._arguments import shown
from .._errors import UsageError


KINDS = {
    "whole": "all tokens in one call",
    "steps": "token by token, each from the state that the one before left",
    "chunks": "chunks:64,37 in calls of 64, then 37 tokens each; the last number "
    "repeats, `rest` takes what is left",
    "drafts": "drafts:4,3 in calls of 4 steps each, of which 3 are kept and the rest "
    "thrown away; drafts:4 keeps all",
    "padded_left": "padded_left:5 behind 5 masked tokens; padded_left:5,100 the first "
    "100 tokens so, then token by token",
    "padded_right": "padded_right:3 before 3 masked tokens; padded_right:3,100 the "
    "first 100 tokens so, then token by token",
    "batched": "batched:1 as row 1 of a batch of other texts",
    "packed": "packed:100 behind another text of 100 tokens in one sequence",
    "initial_state": "initial_state:100 the first 100 tokens in one call, then token "
    "by token from their state",
    "resumed": "resumed:64 behind the first 64 tokens of another text, which begins "
    "alike and left its state in a block; resumed:64,100 up to token 100 in one "
    "call, then token by token through blocks of 64",
    "preempted": "preempted:100 thrown out behind 100 tokens and computed again, in "
    "one call, then token by token; preempted:100,64 again from the last block of 64",
    "mixed": "mixed:100 the first 100 tokens in one call beside another text's step, "
    "then token by token beside prefills of others",
    "compiled": "all tokens in one call of what torch.compile makes of the network",
}
NUMBERS = {
    "whole": (0, 0),
    "steps": (0, 0),
    "drafts": (1, 2),
    "padded_left": (1, 2),
    "padded_right": (1, 2),
    "batched": (0, 1),
    "packed": (1, 1),
    "initial_state": (1, 1),
    "resumed": (1, 2),
    "preempted": (1, 2),
    "mixed": (1, 1),
    "compiled": (0, 0),
}
SCHEDULED = ("resumed", "preempted", "mixed")
"""What a server does that schedules several requests."""
HINT = "one of " + ", ".join(KINDS)


@dataclass(frozen=True)
class Call:
    """One call of a network: tokens from `start` to before `stop`."""

    start: int
    stop: int
    decode: bool = False
    """Whether it takes one token at a time from a state."""


@dataclass(frozen=True)
class Variant:
    """One way to run a text.

    **Arguments:**

    - `kind`: one of `KINDS`.
    - `numbers`: what stands behind the colon; -1 for `rest`.
    """

    kind: str
    numbers: tuple[int, ...] = ()

    def __str__(self) -> str:
        if not self.numbers:
            return self.kind
        numbers = ",".join("rest" if n < 0 else str(n) for n in self.numbers)
        return f"{self.kind}:{numbers}"

    @property
    def row(self) -> int:
        """Where the text is in a batch, from 0; 1 where nobody says."""
        return self.numbers[0] if self.numbers else 1

    @property
    def prompt(self) -> int | None:
        """Tokens before the steps; None where there are no steps."""
        if self.kind in ("initial_state", "preempted", "mixed"):
            return self.numbers[0]
        two = self.kind == "resumed" or self.kind.startswith("padded")
        return self.numbers[1] if two and len(self.numbers) == 2 else None

    @property
    def cached(self) -> int:
        """Tokens before a state that another request left, or the same before it was
        thrown out: a text goes on from there; 0: from its start."""
        if self.kind == "resumed":
            return self.numbers[0]
        if self.kind == "preempted" and self.block is not None:
            # the last token is computed again, whatever is there
            return (self.numbers[0] - 1) // self.block * self.block
        return 0

    @property
    def block(self) -> int | None:
        """Tokens of a block, at whose end a state is kept; None: there are none."""
        if self.kind == "resumed":
            return self.numbers[0]
        two = self.kind == "preempted" and len(self.numbers) == 2
        return self.numbers[1] if two else None

    def in_front(self, seq: int) -> int:
        """Tokens of other texts in the same prefill, in front of one of `seq`."""
        if self.kind == "packed":
            return self.numbers[0]
        return self.row * seq if self.kind == "batched" else 0

    @property
    def kept(self) -> int:
        """Steps of a call that are kept, of `drafts`."""
        return self.numbers[-1]

    def calls(
        self, seq: int, *, first_is_step: bool = False, rest_is_step: bool = True
    ) -> tuple[Call, ...]:
        """The calls that a text of `seq` tokens is run in; steps are one entry.

        **Arguments:**

        - `first_is_step`: whether the first of all steps starts from a cache of zeros,
          as in mamba_ssm; in transformers it is a call without a state.
        - `rest_is_step`: whether a chunk of a single token behind others is a step.
        """
        if self.kind in ("steps", "drafts"):
            if first_is_step:
                return (Call(0, seq, decode=True),)
            return Call(0, 1), Call(1, seq, decode=True)
        if self.kind == "resumed" or self.prompt is not None:
            return tuple(self._behind(self.prompt or seq, seq, rest_is_step))
        if self.kind != "chunks":
            return (Call(0, seq),)
        return tuple(self._chunks(seq, rest_is_step))

    def _behind(self, prompt: int, seq: int, rest_is_step: bool) -> Iterator[Call]:
        """What was cached, the rest of the prompt, and steps."""
        begin = self.cached
        if begin:
            yield Call(0, begin)
        if prompt == begin + 1 and begin and rest_is_step:
            yield Call(begin, seq, decode=True)
            return
        yield Call(begin, prompt)
        if prompt < seq:
            yield Call(prompt, seq, decode=True)

    def _chunks(self, seq: int, rest_is_step: bool) -> Iterator[Call]:
        start = 0
        for size in self._sizes():
            stop = seq if size < 0 else min(start + size, seq)
            single = rest_is_step and start > 0 and stop == start + 1
            yield Call(start, stop, decode=single)
            if stop == seq:
                return
            start = stop

    def _sizes(self) -> Iterator[int]:
        yield from self.numbers
        while True:
            yield self.numbers[-1]

    def check(self, seq: int) -> None:
        """**Raises:** `UsageError` where a text of `seq` tokens cannot be run so."""
        prompt, cached = self.prompt, self.cached
        if prompt is not None and not 0 < prompt < seq:
            raise UsageError(
                f"{self} cannot be run on {seq} tokens",
                hint=f"from 1 to {seq - 1} tokens before the steps",
            )
        if self.block is not None and not 0 < cached < (prompt or seq):
            raise UsageError(
                f"{self} cannot be run on {seq} tokens",
                hint="a block that ends before the last token of the prompt",
            )


def parse_variant(text: str) -> Variant:
    """A way to run a text from its name.

    **Raises:** `UsageError` that says which names there are.
    """
    kind, colon, rest = text.strip().partition(":")
    if kind not in KINDS:
        raise UsageError(f"no way to run a text is called {text[:80]!r}", hint=HINT)
    numbers = []
    for part in rest.split(",") if colon else ():
        last = part == "rest" and kind == "chunks"
        if not last and not (part.isdecimal() and len(part) < 10):
            raise UsageError(
                f"{text[:80]!r} is not understood: {part[:20]!r} is no number",
                hint=KINDS[kind],
            )
        numbers.append(-1 if last else int(part))
    least, most = NUMBERS.get(kind, (1, 10_000))
    counted = kind in ("chunks", "drafts")
    positive = all(n != 0 for n in numbers[: None if counted else 0])
    if kind == "drafts" and numbers[1:] > numbers[:1]:
        positive = False
    if not least <= len(numbers) <= most or not positive or -1 in numbers[:-1]:
        raise UsageError(f"{text[:80]!r} is not understood", hint=KINDS[kind])
    return Variant(kind, tuple(numbers))


def usual_variants(seq: int, chunk: int | None = None) -> tuple[Variant, ...]:
    """What is tried on a text of `seq` tokens: every kind, odd boundaries among them,
    but `compiled`, which takes a compiler's time.

    Chunks of 7 leave a rest of any size, 64 is a power of two, 61 and the rest cut
    where no kernel has a boundary of its own.

    **Arguments:**

    - `chunk`: tokens of a scan's own chunk, of a server, which cuts texts anywhere and
      drafts: calls that end around its end, behind the first token and in front of
      the last are tried, too.
    """
    half = seq // 2
    cuts: set[int] = set()
    if chunk is not None:
        cuts = {1, chunk - 1, chunk, chunk + 1, seq - 1} & set(range(1, seq))
    tried = [
        Variant("whole"),
        Variant("steps"),
        Variant("chunks", (7,)),
        Variant("chunks", (64,)),
        Variant("chunks", (61, -1)),
        Variant("padded_left", (5,)),
        Variant("padded_left", (5, half)),
        Variant("padded_right", (3,)),
        Variant("padded_right", (3, half)),
        Variant("batched", (1,)),
        Variant("packed", (100,)),
        Variant("initial_state", (half,)),
        *(Variant("chunks", (cut, -1)) for cut in sorted(cuts)),
        *(_of_servers(seq, cuts) if cuts else ()),
    ]
    # on a short text several chunkings are the whole text
    cut = (v for v in tried if v.kind != "chunks" or v.numbers[0] < seq)
    return tuple(dict.fromkeys(cut))


def _of_servers(seq: int, cuts: set[int]) -> Iterator[Variant]:
    """What servers alone do with a text: drafts, prefixes that another text left at
    every one of these tokens, pre-emption, and mixed batches."""
    half = seq // 2
    yield Variant("drafts", (4, 3))
    yield from (Variant("resumed", (cut,)) for cut in sorted(cuts))
    if half > 1:
        yield Variant("resumed", (half - 1, half))
        yield Variant("preempted", (half, half - 1))
    yield Variant("preempted", (half,))
    yield Variant("mixed", (half,))


def union(variants: Sequence[str | Variant]) -> tuple[Variant, ...]:
    """The variants asked for, each once."""
    parsed = [v if isinstance(v, Variant) else parse_variant(v) for v in variants]
    return tuple(dict.fromkeys(parsed))


def variants_asked(given: object) -> list[str]:
    """Names of the variants that were asked for, each once; one name is one of them.

    **Raises:** `UsageError` for what is no name, and for none.
    """
    one = isinstance(given, str | Variant)
    asked = [given] if one else list(given) if isinstance(given, Iterable) else None
    if not asked or not all(isinstance(v, str | Variant) for v in asked):
        raise UsageError(f"variants is {shown(given)}", hint=HINT)
    return [str(variant) for variant in union(asked)]
