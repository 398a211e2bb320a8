"""Credits, double entry: accounts, holds, transfers, and the audit of all three."""
