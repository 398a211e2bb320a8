"""Isolation of one attempt: one Protocol, over Docker and over plain processes."""
