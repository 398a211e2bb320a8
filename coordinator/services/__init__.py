"""One use case a file: plain functions of a transaction, the time, and values."""
