"""The output of attempts, as numbered bytes."""
