"""Where the lender's pip looks, and what of that a user must not read."""

from __future__ import annotations

from worker.images.resolve import hosts_in, kept, parse_settings


def test_places_are_taken_from_the_lenders_configuration_and_nothing_else() -> None:
    listed = (
        "global.index-url='https://a.test/simple'\n"
        "install.index-url='https://b.test/simple'\n"
        "global.extra-index-url='\\nhttps://c.test/simple\\nhttps://d.test/simple'\n"
        "global.target='/srv'\n"
        "install.user='yes'\n"
        "global.no-binary=':all:'\n"
        ":env:.find-links='/opt/wheels'\n"
        "global.find-links='/other'\n"
        "nonsense\n"
    )
    assert parse_settings(listed) == {
        "PIP_EXTRA_INDEX_URL": "https://c.test/simple https://d.test/simple",
        "PIP_FIND_LINKS": "/opt/wheels",
        "PIP_INDEX_URL": "https://b.test/simple",
    }


def test_hosts_accounts_and_passwords_of_places_are_hidden() -> None:
    places = {
        "PIP_INDEX_URL": "https://ann:s3cret@pypi.corp.test/simple",
        "PIP_TRUSTED_HOST": "mirror.test:8080",
        "https_proxy": "http://proxy.test:3128",
        "PIP_TIMEOUT": "180",
    }
    assert hosts_in(places) == {"ann", "s3cret", "pypi.corp.test", "mirror.test", "proxy.test"}


def test_what_an_image_has_stays_where_the_list_lets_it() -> None:
    packages = {"numpy": "2.4.6", "six": "1.17.0", "tqdm": "4.70.1"}
    assert kept(["toolz"], packages) == ["numpy==2.4.6", "six==1.17.0", "tqdm==4.70.1"]
    assert kept(["numpy", "Six==1.16.0"], packages) == ["numpy==2.4.6", "tqdm==4.70.1"]
    assert kept(["numpy<2", "tqdm[telegram]>=4"], packages) == ["six==1.17.0", "tqdm==4.70.1"]
