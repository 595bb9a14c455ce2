"""The stability proofs, runnable: `python -m proofs`. One file a statement."""
