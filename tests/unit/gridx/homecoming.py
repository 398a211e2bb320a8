"""A notebook whose cells go there and back: captured here, run in a fresh process, applied here."""

from __future__ import annotations

from typing import Any

from gridx.codec.results import Applied, apply_result
from gridx.ship.capture import capture

from .fresh_process import FreshProcesses


class Grid:
    """A notebook whose cells run in fresh processes."""

    def __init__(self, notebook: dict[str, Any], fresh: FreshProcesses) -> None:
        self.names = notebook
        self._fresh = fresh
        self.answer: dict[str, Any] = {}

    def here(self, source: str) -> None:
        exec(compile(source, "<notebook>", "exec", dont_inherit=True), self.names)

    def there(self, cell: str, **options: Any) -> Applied:
        captured = capture(cell, self.names, needs=options.pop("needs", ()))
        self.answer = self._fresh.run(
            cell,
            captured.payload,
            inputs=captured.inputs,
            expected=options.pop("worker_expects", captured.expected),
        )
        between = options.pop("between", None)
        if between is not None:
            self.here(between)
        return apply_result(
            bytes.fromhex(self.answer["result"]),
            self.names,
            expected=options.pop("expected", captured.expected),
            cell_source=cell,
            source="worker bob",
            **options,
        )
