"""The sandbox with each of its protections taken away in turn: ``python -m tests.mutation``."""
