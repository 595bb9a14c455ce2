"""Proofs, one file a statement; none yet."""
