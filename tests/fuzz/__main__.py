"""``python -m tests.fuzz [COUNT]``: many chunks one after the other, each in its own process.

What is done is kept in a folder, one line a chunk, so that a run that was stopped goes on where it
was; the same seed gives the same cases.
"""

from __future__ import annotations

import argparse
import collections
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from gridx.quantities import format_duration

_CHUNK: Final = 20_000
_LIMIT_S: Final = 3_600


def main(argv: Sequence[str]) -> int:
    """Run the chunks that are missing, say what became of all; 1 when any case went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(".cache/fuzz"))
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / f"seed-{options.seed}.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    while sum(chunk["count"] for chunk in done) < options.count:
        missing = options.count - sum(chunk["count"] for chunk in done)
        chunk = _run(options.seed * 1_000 + len(done), min(_CHUNK, missing))
        done.append(chunk)
        with log.open("a") as file:
            file.write(json.dumps(chunk) + "\n")
        print(_line(chunk), flush=True)
    print(_summary(done))
    return 1 if any(chunk["wrong"] for chunk in done) else 0


def _run(seed: int, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.fuzz.chunk", str(seed), str(count)]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
        found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        how = f"ended with {ended.returncode}: {ended.stderr[-2_000:]}"
        return {"seed": seed, "count": count, "outcomes": {}, "wrong": [{"crash": how}]}
    except subprocess.TimeoutExpired:
        return {"seed": seed, "count": count, "outcomes": {}, "wrong": [{"crash": "too slow"}]}
    return found


def _line(chunk: dict[str, Any]) -> str:
    peak = chunk.get("peak_bytes", 0) / 1e6
    slowest = chunk.get("slowest_s", 0)
    return f"chunk {chunk['seed']}: {chunk['count']:,} cases, {len(chunk['wrong'])} wrong, peak {peak:.0f} MB, slowest {slowest} s"


def _summary(chunks: list[dict[str, Any]]) -> str:
    outcomes: collections.Counter[str] = collections.Counter()
    for chunk in chunks:
        outcomes.update(chunk["outcomes"])
    slowest = max(chunks, key=lambda chunk: chunk.get("slowest_s", 0))
    lines = [f"{sum(chunk['count'] for chunk in chunks):,} cases"]
    lines += [f"  {count:9,}  {outcome}" for outcome, count in sorted(outcomes.items())]
    lines.append(f"peak memory {max(c.get('peak_bytes', 0) for c in chunks) / 1e6:.0f} MB")
    lines.append(
        f"slowest case {format_duration(slowest.get('slowest_s', 0.0))}: {slowest.get('slowest')}"
    )
    lines += [f"WRONG {json.dumps(one)}" for chunk in chunks for one in chunk["wrong"]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
