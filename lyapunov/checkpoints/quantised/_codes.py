"""Codes as layouts pack them, taken apart: what is stored, before any scale.

Words and bytes are little-endian, and the element with the lowest index lies in the
lowest bits everywhere but in bitsandbytes' bytes.
"""

import numpy as np

from ...formats._weights import E2M1_CODES


def from_words(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Take integers of 1 to 8 bits out of words of 32, one behind another without
    gaps, so that one may lie across two words.

    **Arguments:**

    - `words`: (rows, words) int32.
    - `count`: how many integers a row holds; at most `words * 32 // bits`.

    **Returns:** (rows, count) uint8.
    """
    rows = len(words)
    plain = np.ascontiguousarray(words)
    if bits == 8:
        return plain.view(np.uint8).reshape(rows, -1)[:, :count]
    if bits in (1, 2, 4):
        octets = plain.view(np.uint8).reshape(rows, -1)
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        taken = (octets[:, :, None] >> shifts) & np.uint8(2**bits - 1)
        return taken.reshape(rows, -1)[:, :count]
    # one more word behind the last, so that every pair of neighbours is there
    unsigned = np.pad(plain.view(np.uint32), ((0, 0), (0, 1))).astype(np.uint64)
    pairs = unsigned[:, :-1] | (unsigned[:, 1:] << np.uint64(32))
    begins = np.arange(count, dtype=np.int64) * bits
    found = pairs[:, begins // 32] >> (begins % 32).astype(np.uint64)
    return (found & np.uint64(2**bits - 1)).astype(np.uint8)


def words_needed(count: int, bits: int) -> int:
    """Count the words of 32 bits that so many integers take."""
    return -(-count * bits // 32)


def nibbles(octets: np.ndarray, *, high_first: bool = False) -> np.ndarray:
    """Take the two codes out of each byte, (rows, bytes) to (rows, 2 bytes)."""
    low, high = octets & np.uint8(15), octets >> np.uint8(4)
    pair = (high, low) if high_first else (low, high)
    return np.stack(pair, axis=-1).reshape(*octets.shape[:-1], -1)


def e2m1(codes: np.ndarray) -> np.ndarray:
    """The numbers of 4-bit codes (bit 3 the sign), in fp64."""
    return E2M1_CODES.astype(np.float64)[codes]


def powers_of_two(codes: np.ndarray) -> np.ndarray:
    """The scales that bytes of e8m0 stand for, 2^(code - 127); 255 is NaN."""
    exponents = codes.astype(np.int64) - 127
    return np.where(codes == 255, np.nan, np.ldexp(1.0, exponents))


# Of eight columns, the one that lies in each nibble of AWQ's words, lowest first.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def from_awq_words(words: np.ndarray) -> np.ndarray:
    """Take the codes out of AWQ's words, (rows, words) to (rows, 8 words)."""
    taken = from_words(words, 4, 8 * words.shape[1])
    found = np.empty_like(taken)
    for nibble, column in enumerate(AWQ_ORDER):
        found[:, column::8] = taken[:, nibble::8]
    return found
