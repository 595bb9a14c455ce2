"""Readers of files from anywhere: every size is checked, nothing in them is run."""
