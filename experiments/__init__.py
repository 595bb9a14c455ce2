"""Experiments: each module is run with `python -m experiments.NAME`.

The folders hold what such a module is made of.
"""
