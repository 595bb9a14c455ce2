"""Studies over the library: `python -m analysis.NAME`, results in `results/`."""
