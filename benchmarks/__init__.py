"""Benchmarks: quality at equal time, and what an evaluation costs. Results lie in ``results/`` with their machine."""
