"""Which test fails when a protection of the sandbox is gone.

    python -m tests.mutation                     every one of them, and a table
    python -m tests.mutation CapDrop Memory      these
    python -m tests.mutation --write             and docs/reference/hardening.md anew

Exit code 1 when a protection can go and no test says so.
"""

from __future__ import annotations

import argparse
import sys

from .page import PAGE, page_of
from .run import known, run, unguarded


def main() -> int:
    """Run it. Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("flags", nargs="*", help="flags to take away; every one by default")
    parser.add_argument("--write", action="store_true", help=f"make {PAGE.name} anew")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument(
        "--no-baseline", action="store_true", help="do not try the whole sandbox before"
    )
    options = parser.parse_args()
    try:
        flags = known(options.flags)
    except ValueError as error:
        parser.error(str(error))
    if options.write and options.flags:
        parser.error("--write is for all flags.")
    if not options.no_baseline:
        (whole,) = run([""])
        print(f"{'nothing':36} {whole.ran} tests in {whole.seconds:.0f} s", flush=True)
        if whole.failed or not whole.ran:
            print(f"The whole sandbox fails already: {whole.failed} {whole.why}", file=sys.stderr)
            return 1
    found = []
    for each in run(flags, jobs=options.jobs):
        found.append(each)
        print(f"{each.flag:36} {each.by or f'NOT NOTICED ({each.ran} tests ran)'}", flush=True)
        print(f"{'':36}   {each.why[:160]}", flush=True)
    missed = unguarded(found)
    print(f"{len(found) - len(missed)} of {len(found)} noticed", flush=True)
    if missed:
        return 1
    if options.write:
        PAGE.write_text(page_of(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
