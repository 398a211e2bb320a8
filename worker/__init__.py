"""The lender's daemon: takes jobs from a coordinator and runs each in a fresh sandbox."""
