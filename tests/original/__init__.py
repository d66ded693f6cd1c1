"""The published implementation's figures, and what this project computes for each of them.

The tests hold the results to their bounds; `scripts/fidelity.py` writes them into docs/fidelity.md.
"""
