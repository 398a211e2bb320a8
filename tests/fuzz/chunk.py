"""One chunk of cases in a process of its own: ``python -m tests.fuzz.chunk SEED COUNT``.

A crash is seen as one, memory has a limit, and an audit hook stops whatever would run code, open
a file for writing, load a library or reach the network. The last line is the outcome, as JSON.
"""

from __future__ import annotations

import collections
import faulthandler
import json
import random
import resource
import sys
import time
import warnings
from typing import Any, Final

_MEMORY_BYTES: Final = 6 << 30
_SLOW_S: Final = 5.0
_FORBIDDEN: Final = (
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile",
    "subprocess.Popen", "socket.connect", "socket.bind", "pickle.find_class", "ctypes.dlopen", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.kill",
    "shutil.rmtree", "webbrowser.open", "urllib.Request", "sqlite3.connect", "pty.spawn",
)  # fmt: skip
_watching = False


class Executed(BaseException):
    """A hostile message made this process do something."""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event in _FORBIDDEN:
        raise Executed(f"{event} {arguments!r:.200}")
    if event == "marshal.loads" and not _is_of_an_import():
        raise Executed("code was unmarshalled")
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        raise Executed(f"open for writing: {arguments[0]!r:.200}")


def _is_of_an_import() -> bool:
    # A library that loads a part of itself at its first use.
    frame = sys._getframe(2)
    return "importlib._bootstrap" in frame.f_code.co_filename


def main(seed: int, count: int, only: str | None) -> int:
    """Run ``count`` cases; print what became of them; return how many went wrong."""
    from tests.unit.gridx.codec import sample_values

    sys.modules["__main__"] = sample_values.as_main()
    from . import targets

    made = {name: (make(), weight) for name, (make, weight) in targets.TARGETS.items()}
    if only is not None:
        made = {only: made[only]}
    names = list(made)
    weights = [weight for _, weight in made.values()]
    outcomes: collections.Counter[str] = collections.Counter()
    wrong: list[dict[str, Any]] = []
    slowest: tuple[float, str, int] = (0.0, "", 0)
    chooser = random.Random(seed)
    global _watching
    for number in range(count):
        name = chooser.choices(names, weights)[0]
        case_seed = seed * 10_000_000 + number
        chance = random.Random(case_seed)
        began_s = time.process_time()
        _watching = True
        try:
            outcome = made[name][0](chance)
        except targets.CLEAN:
            outcome = targets.REFUSED
        except BaseException as exc:
            outcome = "WRONG"
            wrong.append({"target": name, "seed": case_seed, "raised": f"{exc!r:.300}"})
        finally:
            _watching = False
        took_s = time.process_time() - began_s
        slowest = max(slowest, (took_s, name, case_seed))
        if took_s > _SLOW_S:
            wrong.append({"target": name, "seed": case_seed, "slow_s": round(took_s, 1)})
        outcomes[f"{name}: {outcome}"] += 1
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps(
            {
                "seed": seed,
                "count": count,
                "outcomes": outcomes,
                "wrong": wrong,
                "peak_bytes": peak_bytes,
                "slowest_s": round(slowest[0], 3),
                "slowest": f"{slowest[1]} {slowest[2]}",
            }
        )
    )
    return len(wrong)


if __name__ == "__main__":
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    warnings.simplefilter("ignore")
    sys.addaudithook(_audit)
    target = sys.argv[3] if len(sys.argv) > 3 else None
    sys.exit(1 if main(int(sys.argv[1]), int(sys.argv[2]), target) else 0)
