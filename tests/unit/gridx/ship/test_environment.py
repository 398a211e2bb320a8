"""Packages that no image has are named before anything is sent, with what to do about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gridx.resources import Image
from gridx.ship.capture import Captured, capture
from gridx.ship.environment import Distribution, Findings, check, installed_distributions

_HERE = {
    "numpy": (Distribution("numpy", "2.4.6"),),
    "sklearn": (Distribution("scikit-learn", "1.9.1"),),
    "cv2": (Distribution("opencv-python", "4.10"),),
    "attrs": (Distribution("attrs", "26.1.0"),),
    "google": (Distribution("protobuf", "5.1"), Distribution("google-auth", "2.1")),
    "old": (Distribution("old", "0.3.1"),),
}


def _image(name: str = "img", python: str | None = None, **packages: str) -> Image:
    named = {key.replace("_", "-"): value for key, value in packages.items()}
    return Image(
        name=name,
        digest=name,
        language="python",
        python=python or _captured("1").python,
        packages={"ipython": "9", **named},
    )


def _captured(cell: str, **changes: Any) -> Captured:
    return replace(capture(cell, {}), **changes)


def _check(captured: Captured, *images: Image) -> Findings:
    return check(captured, images, find_distributions=lambda root: _HERE.get(root, ()))


def test_an_image_that_has_all_is_no_news() -> None:
    cell = "import numpy as np, json, os.path\nfrom sklearn.svm import SVC"
    assert _check(_captured(cell), _image(numpy="2.1", scikit_learn="1.2")) == Findings()


def test_a_missing_package_is_named_as_it_is_installed_with_a_way_out_that_works_today() -> None:
    findings = _check(_captured("import cv2"), _image(numpy="2"))
    assert findings.missing == ("This cell needs opencv-python 4.10, which the image img lacks.",)
    error = findings.error()
    assert error is not None
    assert error.code == "missing_modules"
    assert "pip install --no-deps --target . 'opencv-python==4.10'" in error.hint
    assert "--pip" not in error.hint
    assert error.details["packages"] == ["opencv-python==4.10"]


def test_the_variable_that_needs_a_package_is_named() -> None:
    captured = _captured("1", modules=frozenset({"sklearn.svm"}), needed_by={"sklearn.svm": "m"})
    (sentence,) = _check(captured, _image()).missing
    assert sentence.startswith("Variable 'm' needs scikit-learn 1.9.1")


def test_a_variable_is_known_by_what_its_pickle_refers_to(notebook: dict[str, Any]) -> None:
    exec("import numpy as np\na = [1]\nb = np.ones(3)", notebook)
    captured = capture("a; b", notebook)
    assert captured.needed_by
    assert set(captured.needed_by.values()) == {"b"}


@pytest.mark.parametrize(
    "cell",
    [
        "try:\n    import cv2\nexcept ImportError:\n    cv2 = None",
        "try:\n    import cv2\nexcept:\n    pass",
        "def f():\n    import cv2",
        "if x:\n    import cv2",
    ],
)
def test_what_is_imported_perhaps_only_warns(cell: str) -> None:
    findings = _check(_captured(cell), _image())
    assert findings.error() is None
    assert any("may import cv2" in note for note in findings.notes)


@pytest.mark.parametrize(
    "cell",
    [
        "def f():\n    import cv2\nf()",
        "def g():\n    import cv2\ndef f():\n    g()\nx = f()",
        "with a:\n    import cv2",
        "try:\n    import cv2\nexcept KeyError:\n    pass",
        "%time import cv2",
    ],
)
def test_what_is_surely_imported_is_refused(cell: str) -> None:
    import IPython.core.inputtransformer2  # noqa: F401

    assert _check(_captured(cell), _image()).error() is not None


def test_another_major_version_is_a_note(notebook: dict[str, Any]) -> None:
    findings = _check(_captured("import numpy, old"), _image(numpy="1.26", old="0.4"))
    assert findings.error() is None
    assert findings.notes == (
        "numpy is 2.4.6 here and 1.26 in the image: their results may differ",
        "old is 0.3.1 here and 0.4 in the image: their results may differ",
    )
    assert _check(_captured("import numpy, old"), _image(numpy="2.9", old="0.3.9")) == Findings()


def test_one_image_that_fits_is_enough_and_the_others_are_named() -> None:
    findings = _check(_captured("import numpy, cv2"), _image("a", numpy="2"),
                      _image("b", numpy="2", opencv_python="4"))  # fmt: skip
    assert findings.error() is None
    assert findings.notes == ("a lacks cv2; another image has all",)


def test_when_no_image_fits_each_that_lacks_something_is_named() -> None:
    findings = _check(
        _captured("import numpy, cv2"), _image("a", numpy="2"), _image("b", opencv_python="4")
    )
    assert len(findings.missing) == 1
    assert "the image a lacks" in findings.missing[0]
    both = _check(_captured("import cv2"), _image("a"), _image("b"))
    assert "the images a and b lack" in both.missing[0]


def test_images_of_another_python_or_without_a_manifest_say_nothing() -> None:
    captured = _captured("import cv2")
    assert _check(captured, _image(python="3.2")) == Findings()
    empty = Image(name="p", digest="", language="python", python=captured.python)
    assert _check(captured, empty) == Findings()
    assert _check(captured) == Findings()
    assert _check(replace(captured, has_code=False), _image(python="3.2")).missing


def test_a_module_that_is_not_installed_here_is_left_to_the_cell() -> None:
    assert _check(_captured("import nowhere"), _image()) == Findings()


def test_modules_of_the_user_and_the_standard_library_are_left_out() -> None:
    captured = _captured("import cv2", user_modules=frozenset({"cv2"}))
    assert _check(captured, _image()) == Findings()
    assert _check(_captured("import json, xml.dom, _thread"), _image()) == Findings()


def test_a_module_of_several_distributions_fits_when_one_of_them_is_there() -> None:
    assert _check(_captured("import google.auth"), _image(protobuf="5")) == Findings()


def test_modules_are_found_in_what_is_installed_here() -> None:
    assert [d.name for d in installed_distributions("numpy")] == ["numpy"]
    assert [d.name for d in installed_distributions("PIL")] == ["pillow"]
    assert [d.name for d in installed_distributions("dateutil")] == ["python-dateutil"]
    assert installed_distributions("no_such_module") == ()
