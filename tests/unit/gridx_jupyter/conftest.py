"""A kernel's state, over a shell without a kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from IPython.core.interactiveshell import InteractiveShell

from gridx_jupyter.connection import Connection
from gridx_jupyter.magics.journal import Journal
from gridx_jupyter.magics.notebook import Notebook


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    notebook = Notebook(InteractiveShell.instance(), Connection())
    notebook.journal = Journal(tmp_path_factory.mktemp("data"), "a notebook")
    yield notebook
    InteractiveShell.clear_instance()
