"""When this machine is lent, and how the lender says so."""
