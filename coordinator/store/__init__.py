"""What is on record: tables, queries, and the engine that runs them."""
