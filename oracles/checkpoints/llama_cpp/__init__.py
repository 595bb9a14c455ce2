"""Networks of transformers written as llama.cpp's converter writes them to GGUF.

`files` writes one, by tables in `mamba` and `hybrids` and what they share in `parts`;
`cases` are small networks that llama.cpp computes as well.
"""

from . import cases, files, hybrids, mamba, parts


__all__ = ["cases", "files", "hybrids", "mamba", "parts"]
