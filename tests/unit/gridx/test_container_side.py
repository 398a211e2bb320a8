"""What the container loads of the shared core: little, and nothing that the image lacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[3]
_ALLOWED = {
    "gridx",
    "gridx.codec",
    "gridx.errors",
    "gridx.remote_error",
    "gridx.remote_frames",
    "gridx.ship",
}
_ALLOWED_SHIP = {
    "analysis",
    "flow",
    "import_statements",
    "magic_lines",
    "opcodes",
    "replay",
    "restore",
    "deep_stack",
}


def _loaded_by(imports: str) -> set[str]:
    program = (
        f"import sys\nbefore = set(sys.modules)\n{imports}\nprint(*(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=_ROOT
    )
    return set(done.stdout.split())


def test_the_container_loads_the_encoder_and_the_restorer_and_no_library() -> None:
    loaded = _loaded_by("import gridx.codec.results, gridx.ship.restore, gridx.remote_error")
    ours = {name for name in loaded if name.partition(".")[0] == "gridx"}
    codec = {name for name in ours if name.startswith("gridx.codec.")}
    ship = {name.removeprefix("gridx.ship.") for name in ours if name.startswith("gridx.ship.")}
    assert ship == _ALLOWED_SHIP
    assert ours - codec - {f"gridx.ship.{name}" for name in ship} == _ALLOWED
    heavy = {"numpy", "pandas", "pyarrow", "IPython", "tornado", "cloudpickle", "asyncio"}
    assert not {name.partition(".")[0] for name in loaded} & heavy


def test_the_restorer_loads_nothing_else_of_ours() -> None:
    loaded = _loaded_by("import gridx.ship.restore")
    assert {name for name in loaded if name.startswith("gridx")} == {
        "gridx",
        "gridx.ship",
        "gridx.ship.restore",
    }
