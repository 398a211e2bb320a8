"""Whole notebooks, cell by cell, here and under ``%%gridx``: what a reader would see, compared."""
