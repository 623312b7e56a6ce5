"""Measurements: each prints both sides of a comparison in one run, and writes them with --json FILE."""
