"""One step of generation of the 8B shapes, timed."""
