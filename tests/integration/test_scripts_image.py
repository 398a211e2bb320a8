"""The sandbox image on a real engine: what is in it is what its manifest says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from gridx.errors import SandboxError
from worker.images import ImageInfo, engine_client, ensure_image
from worker.images.command import main
from worker.images.engine import file_of

pytestmark = pytest.mark.docker

PATHS = "import sys; sys.path[:0] = ['/opt/gridx/lib', '/opt/gridx/site']\n"


@pytest.fixture(scope="module")
def api() -> Iterator[Any]:
    client = engine_client()
    yield client
    client.close()


@pytest.fixture(scope="module")
def image(api: Any) -> ImageInfo:
    return ensure_image(api)


def python(api: Any, image: ImageInfo, code: str) -> str:
    """Run ``code`` as a sandbox would, read-only and without a network; return what it prints."""
    container = api.create_container(
        image.id,
        ["/usr/bin/python3", "-I", "-S", "-c", PATHS + code],
        user="200001:200001",
        network_disabled=True,
        host_config=api.create_host_config(
            network_mode="none", read_only=True, cap_drop=["ALL"], tmpfs={"/tmp": "size=16m"}
        ),
        labels={"gridx.image": "test"},
    )
    try:
        api.start(container)
        code_of = api.wait(container)["StatusCode"]
        said: str = api.logs(container).decode()
    finally:
        api.remove_container(container, force=True)
    assert code_of == 0, said
    return said


def test_the_manifest_is_the_same_on_the_label_in_the_image_and_in_its_packages(
    api: Any, image: ImageInfo
) -> None:
    said = json.loads(
        python(
            api,
            image,
            "import json, platform\n"
            "from importlib.metadata import distributions\n"
            "found = {d.metadata['Name'].lower().replace('_', '-'): d.version\n"
            "         for d in distributions(path=['/opt/gridx/site'])}\n"
            "print(json.dumps([platform.python_version(), found,\n"
            "                  json.load(open('/opt/gridx/manifest.json'))]))",
        )
    )
    version, packages, inside = said
    assert version == image.manifest.python == inside["python"]
    assert packages == image.manifest.packages == inside["packages"]
    assert image.tag.endswith(inside["runtime"])


def test_the_packages_load_and_plot_from_a_read_only_root(api: Any, image: ImageInfo) -> None:
    said = python(
        api,
        image,
        "import os, io\n"
        "os.makedirs('/tmp/mpl')\n"
        "for name in os.listdir('/opt/gridx/mpl'):\n"
        "    os.symlink('/opt/gridx/mpl/' + name, '/tmp/mpl/' + name)\n"
        "os.environ['MPLCONFIGDIR'] = '/tmp/mpl'\n"
        "import IPython, cloudpickle, msgspec, numpy, pandas, pyarrow, PIL, matplotlib_inline\n"
        "import matplotlib.font_manager as fonts\n"
        "import matplotlib.pyplot as plt\n"
        "plt.plot([1, 2]); out = io.BytesIO(); plt.savefig(out, format='png')\n"
        "print(out.getvalue()[:4], [n for n in os.listdir('/tmp/mpl') if not os.path.islink('/tmp/mpl/' + n)])",
    )
    assert said.splitlines()[-1] == r"b'\x89PNG' []"


def test_everything_is_compiled_belongs_to_root_and_nothing_is_setuid(
    api: Any, image: ImageInfo
) -> None:
    said = python(
        api,
        image,
        "import os, stat\n"
        "setuid, foreign, uncompiled = [], [], []\n"
        "for top in ('/usr', '/bin', '/opt'):\n"
        "    for folder, _, names in os.walk(top):\n"
        "        for name in names:\n"
        "            path = os.path.join(folder, name)\n"
        "            s = os.lstat(path)\n"
        "            if stat.S_ISREG(s.st_mode) and s.st_mode & 0o6000: setuid.append(path)\n"
        "            if top == '/opt' and (s.st_uid or s.st_mode & 0o022) and not stat.S_ISLNK(s.st_mode): foreign.append(path)\n"
        "for folder, dirs, names in os.walk('/opt/gridx/lib'):\n"
        "    for name in names:\n"
        "        if name.endswith('.py') and not os.path.exists(f'{folder}/__pycache__/{name[:-3]}.cpython-{sys.version_info[0]}{sys.version_info[1]}.pyc'):\n"
        "            uncompiled.append(f'{folder}/{name}')\n"
        "print(setuid, foreign, uncompiled)\n"
        "print(oct(os.stat('/work').st_mode & 0o7777), oct(os.stat('/in').st_mode & 0o7777))",
    )
    assert said.splitlines() == ["[] [] []", "0o700 0o755"]


def test_the_shared_core_and_the_runtime_load_without_the_clients_dependencies(
    api: Any, image: ImageInfo
) -> None:
    said = python(
        api,
        image,
        "import gridx.events, gridx.errors, gridx_runtime.frames\nprint('tornado' in sys.modules)",
    )
    assert said == "False\n"


def test_a_file_is_read_out_of_an_image(api: Any, image: ImageInfo) -> None:
    inside = json.loads(file_of(api, image.id, "/opt/gridx/manifest.json"))
    assert inside["runtime"] == image.manifest.runtime
    for path in ("/opt/gridx/nothing", "/opt/gridx"):
        with pytest.raises(SandboxError):
            file_of(api, image.id, path)


def test_the_command_prints_what_is_there(
    image: ImageInfo, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tag"] == image.tag
    assert main(["--language", "python"]) == 0
    assert capsys.readouterr().out == f"{image.tag}\n"
    assert main(["--python", "3.11,3.12", "--base", "x"]) == 1
    assert "One base has one Python." in capsys.readouterr().err
