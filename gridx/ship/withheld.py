"""What is never sent unless the user names it: secrets, and what IPython put there itself."""

from __future__ import annotations

import builtins
import os
import re
from typing import Any, Final

_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET_WORDS: Final = frozenset(
    [
        "key",
        "apikey",
        "token",
        "secret",
        "password",
        "passwd",
        "passphrase",
        "credential",
        "credentials",
        "pwd",
        "secretkey",
        "accesskey",
        "privatekey",
        "authtoken",
        "accesstoken",
    ]
)
# In the name of a class: "key" and "token" alone name too much else.
_SECRET_CLASS_WORDS: Final = frozenset({"credential", "credentials", "secret", "password"})
_SECRET_CLASS: Final = re.compile(r"(?:Private|Api|API|Access|Auth|Secret|Signing)_?(?:Key|Token)")
_SHELL_NAMES: Final = frozenset({"exit", "quit", "open", "get_ipython", "display"})
_SHELL_HOMES: Final = frozenset({"IPython", "ipykernel", "builtins", "io", "_io"})
# Histories of the shell: one value of them may travel, never the whole.
HISTORY_NAMES: Final = frozenset({"In", "Out", "_ih", "_oh", "_dh", "_i", "_ii", "_iii"})
BUILTIN_NAMES: Final = frozenset(dir(builtins))


def is_secret_name(name: str) -> bool:
    """Return whether a word of ``name`` says that it holds a secret.

    ``api_key`` and ``authToken`` do; ``keys``, ``keyword`` and ``monkey`` do not.
    """
    return any(word.lower() in _SECRET_WORDS for word in _WORD.findall(name))


_credential_classes: dict[type, bool] = {}


def is_credential(value: object) -> bool:
    """Return whether ``value`` itself is a secret: the environment, or an object of credentials."""
    cls = type(value)
    known = _credential_classes.get(cls)
    if known is None:
        words = {word.lower() for word in _WORD.findall(cls.__name__)}
        known = bool(words & _SECRET_CLASS_WORDS or _SECRET_CLASS.search(cls.__name__))
        _credential_classes[cls] = known = known or cls is type(os.environ)
    return known


def is_secret(name: str, value: object) -> bool:
    """Return whether ``value`` under ``name`` needs the user's word to be sent."""
    if is_credential(value):
        return True
    # A function or class called make_key or TokenStream is code, and holds no secret itself.
    is_code = callable(value) or isinstance(value, type(os))
    return is_secret_name(name) and not is_code


def is_of_the_shell(name: str, namespace: dict[str, Any]) -> bool:
    """Return whether ``name`` is the shell's own, so that the container has its own too."""
    if name in HISTORY_NAMES or (name.startswith("__") and name.endswith("__")):
        return True
    if re.fullmatch(r"_i\d+", name):
        return True
    if name in _SHELL_NAMES and name in namespace:
        value = namespace[name]
        home = getattr(value, "__module__", None) or type(value).__module__
        return str(home).partition(".")[0] in _SHELL_HOMES
    return False
