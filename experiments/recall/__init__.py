"""What `experiments.hybrids` found: differences between kinds, tables, the picture."""
