"""Changed and forged bytes of a hostile worker: ``python -m tests.fuzz``, or ``make fuzz``."""
