"""Solver families: each file is a pure function from a grid and options to a plan. The registry is `registry.py`."""
