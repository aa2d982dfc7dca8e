"""Reproduces a table of the papers with one command: plans the jobs, runs them, and collects their results."""
