"""The text: three files, cut into documents, and the split of these."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


_TRUMAN = (
    "PRESIDENT HARRY S. TRUMAN'S ANNUAL MESSAGE TO THE CONGRESS "
    "ON THE STATE OF THE UNION\n \n"
)
_JOHNSON = (
    "PRESIDENT LYNDON B. JOHNSON'S ANNUAL MESSAGE TO THE CONGRESS "
    "ON THE STATE OF THE UNION\n \n"
)
_KENNEDY = (
    "PRESIDENT JOHN F. KENNEDY'S SPECIAL MESSAGE TO THE CONGRESS "
    "ON URGENT NATIONAL NEEDS\n \nMay 25, 1961\n\n"
)
_KENNEDY_1962 = (
    "PRESIDENT JOHN F. KENNEDY'S ANNUAL ADDRESS TO A JOINT SESSION OF CONGRESS "
    "ON THE STATE OF THE UNION\n \nThis week we begin anew"
)
_REAGAN = (
    "PRESIDENT RONALD REAGAN'S ADDRESS BEFORE A JOINT SESSION OF THE CONGRESS "
    "ON THE STATE OF THE UNION\n \n"
)
_BUSH = (
    "PRESIDENT GEORGE W. BUSH'S ADDRESS BEFORE A JOINT SESSION OF THE CONGRESS "
    "ON THE STATE OF THE UNION\n \n"
)

FILES = ("shakespeare.txt", "state_union.txt", "inaugural.txt")


@dataclass(frozen=True)
class Document:
    """One document of a corpus file: from its opening words to those of the next."""

    title: str
    file: str
    opens: str
    next: str = ""  # to the end of the file

    def span(self, data: bytes) -> tuple[int, int]:
        """First byte and the byte past the last one."""
        start = self._find(data, self.opens)
        stop = self._find(data, self.next) if self.next else len(data)
        if stop <= start:
            raise SystemExit(f"error: {self.title!r} ends before it begins")
        return start, stop

    def _find(self, data: bytes, words: str) -> int:
        n = data.count(words.encode())
        if n != 1:
            raise SystemExit(
                f"error: {self.file} holds {words[:60]!r}... {n} times, not once\n"
                "hint: the split is written for the corpora named in the model card"
            )
        return data.index(words.encode())


SPLIT = {
    "validation": (
        Document(
            "Johnson, State of the Union, 1964",
            "state_union.txt",
            _JOHNSON + "January 8, 1964\n",
            _JOHNSON + "January 4, 1965\n",
        ),
        Document(
            "Reagan, State of the Union, 1984",
            "state_union.txt",
            _REAGAN + "January 25, 1984\n",
            _REAGAN + "February 6, 1985\n",
        ),
        Document(
            "Nixon, inaugural address, 1969",
            "inaugural.txt",
            "Senator Dirksen, Mr. Chief Justice, Mr. Vice President",
            "Mr. Vice President, Mr. Speaker, Mr. Chief Justice, Senator Cook",
        ),
    ),
    "held_out": (
        Document(
            "Kennedy, Special Message on Urgent National Needs, 1961",
            "state_union.txt",
            _KENNEDY,
            _KENNEDY_1962,
        ),
        Document(
            "Shakespeare, The Tempest (the part that the corpus has)",
            "shakespeare.txt",
            "Master:\nBoatswain!\n",
        ),
        Document(
            "Truman, State of the Union, 1949",
            "state_union.txt",
            _TRUMAN + "January 5, 1949\n",
            _TRUMAN + "January 4, 1950\n",
        ),
        Document(
            "G. W. Bush, State of the Union, 2005",
            "state_union.txt",
            _BUSH + "February 2, 2005\n",
            _BUSH + "January 31, 2006\n",
        ),
        Document(
            "F. D. Roosevelt, inaugural address, 1937",
            "inaugural.txt",
            "When four years ago we met to inaugurate a President",
            "On each national day of inauguration since 1789",
        ),
        Document(
            "Taft, inaugural address, 1909",
            "inaugural.txt",
            "My fellow citizens: Anyone who has taken the oath I have just taken",
            "There has been a change of government. It began two years ago",
        ),
    ),
}

OVERLAP = 40  # bytes; shorter strings are shared by any two texts of a language
PLAY_PART = 12_000  # bytes of the play in heldout.txt, then on to the end of a speech


@dataclass(frozen=True)
class Corpus:
    """The three files, cut into documents."""

    files: dict[str, bytes]
    training: bytes
    documents: dict[str, list[tuple[Document, tuple[int, int], bytes]]]

    @classmethod
    def read(cls, folder: Path) -> "Corpus":
        """Read the files and cut out the documents of `SPLIT`."""
        try:
            files = {name: (folder / name).read_bytes() for name in FILES}
        except OSError as error:
            raise SystemExit(
                f"error: {error}\nhint: --corpus needs {', '.join(FILES)}"
            ) from error
        documents: dict[str, list[tuple[Document, tuple[int, int], bytes]]] = {}
        taken: dict[str, list[tuple[int, int]]] = {name: [] for name in FILES}
        for part, members in SPLIT.items():
            documents[part] = []
            for member in members:
                span = member.span(files[member.file])
                taken[member.file].append(span)
                text = files[member.file][slice(*span)]
                documents[part].append((member, span, text))
        rest = []
        for name, data in files.items():
            at = 0
            for start, stop in sorted(taken[name]):
                rest.append(data[at:start])
                at = stop
            rest.append(data[at:])
        return cls(files, b"".join(rest), documents)

    def texts(self, part: str, most: int = 0) -> list[bytes]:
        """The texts of one part of the split, or the beginning of each."""
        return [text[: most or None] for _, _, text in self.documents[part]]

    def held_out_text(self) -> bytes:
        """English prose, then part of a play; from held-out documents alone."""
        prose, play = self.texts("held_out")[:2]
        prose = prose.removeprefix(_KENNEDY.encode()).rstrip()
        cut = play.index(b"\n\n", PLAY_PART)
        text = prose + b"\n\n\n" + play[:cut] + b"\n"
        text.decode("ascii")
        return text

    def describe(self) -> dict[str, Any]:
        """Files, split and overlap, for training.json."""
        seen = {
            hash(self.training[i : i + OVERLAP])
            for i in range(len(self.training) - OVERLAP + 1)
        }

        def shared(text: bytes) -> float:
            n = len(text) - OVERLAP + 1
            return sum(hash(text[i : i + OVERLAP]) in seen for i in range(n)) / n

        return {
            "licence": "public domain",
            "files": [
                {
                    "name": name,
                    "bytes": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                }
                for name, data in self.files.items()
            ],
            "training_bytes": len(self.training),
            "overlap_string_bytes": OVERLAP,
            "documents": {
                part: [
                    {
                        "title": document.title,
                        "file": document.file,
                        "start": span[0],
                        "stop": span[1],
                        "overlap": round(shared(text), 5),
                    }
                    for document, span, text in members
                ]
                for part, members in self.documents.items()
            },
        }
