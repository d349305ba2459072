"""What is secret in options: never shown, never stored, and never taken for the real thing."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtl import config, storage
from dtl.config.errors import UserError
from dtl.config.secrets import HIDDEN, hide, hide_options, is_hidden


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pw@host/a", "https://me:***@host/a"),
        ("No such file: 'hdfs://me:p@w/host'", "No such file: 'hdfs://me:***@w/host'"),
        ("https://me:p@ss@host:80/a@b", "https://me:***@host:80/a@b"),
        ("ftp://me:@host", "ftp://me:***@host"),
        ("https://token@host/a", "https://***@host/a"),
        ("s3://AKIA:abc/d+e@photos/a", "s3://AKIA:***@photos/a"),
        ("two: hdfs://a:b@h/,ftp://c:d@e.", "two: hdfs://a:***@h/,ftp://c:***@e."),
        ("cache::https://me:pw@host", "cache::https://me:***@host"),
        (
            "https://h/x?X-Amz-Signature=ab&X-Amz-Algorithm=AWS4&X-Amz-Credential=c/d#e",
            "https://h/x?X-Amz-Signature=***&X-Amz-Algorithm=AWS4&X-Amz-Credential=***#e",
        ),
        ("https://blob/c?sv=2024&sp=r&sig=a%2Bb", "https://blob/c?sv=2024&sp=r&sig=***"),
        ("webhdfs://h/a?delegation=abc", "webhdfs://h/a?delegation=***"),
    ],
)
def test_what_is_secret_is_hidden(text: str, shown: str) -> None:
    assert hide(text) == shown
    assert hide(shown) == shown
    assert is_hidden(shown)


@pytest.mark.parametrize(
    "text",
    [
        "hdfs://namenode:8020/data@2020/x:y@z",
        "webhdfs://me@namenode:9870/photos",
        "abfs://container@account.dfs.core.windows.net/photos",
        "tls://10.0.0.1:8786: refused; write to me@host",
        "ftp://[::1]:21/a@b",
        "/data/me:pw@host/photos",
        "https://host/a?download=1&v=2",
        "memory://photos",
        "imagenet",
    ],
)
def test_what_is_not_secret_stays(text: str) -> None:
    assert hide(text) == text
    assert " " in text or hide_options(text) == text
    assert not is_hidden(text)


@given(
    st.text("abcXYZ019+=%!*", min_size=8), st.sampled_from(["https", "hdfs", "s3", "ftp", "tls"])
)
def test_a_password_of_any_letters(password: str, scheme: str) -> None:
    text = f"error: {scheme}://user:{password}@host/folder: refused"
    assert hide(text) == f"error: {scheme}://user:{HIDDEN}@host/folder: refused"


@pytest.mark.parametrize(
    "text",
    [
        "://" + "a" * 200_000, "a" * 200_000 + " x://y", "x://" + "?sig" * 50_000,
        "x://h/?" + "sig" * 70_000, "?" * 200_000 + "x://", "x://" * 50_000, "x://" + ":" * 200_000,
        "x://" + "@" * 200_000, "x://h/" + "?a=" * 70_000, "1" * 200_000 + "://a",
        "x://" + "*" * 200_000,
    ],
)  # fmt: skip
def test_a_long_text_takes_no_long_time(text: str) -> None:
    began = time.process_time()
    assert hide(text) == text
    hide_options(text)
    is_hidden(text)
    assert time.process_time() - began < 1.5


def test_a_name_with_stars_is_no_hidden_password() -> None:
    for name in ("rating=***.jpg", "a:***.jpg", "***", "a//***", "x?rating=***.jpg"):
        assert not is_hidden(f"memory://photos/{name}")
        storage.write_bytes(f"memory://photos/{name}", b"1")
        assert storage.read_bytes(f"memory://photos/{name}") == b"1"
    # A file that is found in a folder may have any name; a place that is given may not.
    storage.write_bytes("memory://photos/x?key=***.jpg", b"1")
    assert storage.read_bytes("memory://photos/x?key=***.jpg") == b"1"
    for url in ("memory://photos/x?key=***.jpg", "https://host/a?sig=***", "s3://key:***@photos"):
        with pytest.raises(UserError, match="lacks its password or key"):
            storage.absolute(url)
    with pytest.raises(UserError, match="lacks its password or key"):
        storage.read_bytes("https://host/a?sig=***")


def test_tables_keep_all_but_the_secrets() -> None:
    options = config.build(
        {
            "out": "hdfs://a:b@c/out",
            "images": {"url": "s3://key:sec ret@photos"},
            "yarn": {"env": ["TOKEN=a=b"], "files": ["https://h/f?token=x", "hdfs:///g"]},
        }
    )
    tables = hide_options(config.to_dict(options))
    assert tables["out"] == "hdfs://a:***@c/out"
    assert tables["images"]["url"] == "s3://key:***@photos"
    assert tables["yarn"]["env"] == ["TOKEN=***"]
    assert tables["yarn"]["files"] == ["https://h/f?token=***", "hdfs:///g"]
    # They are options still.
    assert config.build(tables).train == options.train


def test_options_without_secrets_are_as_they_were() -> None:
    options = config.build({"out": "hdfs://nn:8020/out", "images": {"url": "/photos"}})
    assert hide_options(config.to_dict(options)) == config.to_dict(options)


def test_a_message_about_a_variable_has_no_value() -> None:
    with pytest.raises(UserError) as caught:
        config.build({"yarn": {"env": ["TOKEN=hunter2", "more"]}})
    assert "hunter2" not in str(caught.value)
    assert "more" not in str(caught.value)
    assert str(caught.value).endswith("of the form NAME=VALUE. Received: ('TOKEN=***', '***').")
    with pytest.raises(UserError, match=r"yarn\.env must be a list of texts\. Received: \*\*\*\."):
        config.build({"yarn": {"env": 7}})


def test_a_url_without_its_secret_is_never_opened() -> None:
    message = (
        r"https://me:\*\*\*@host/w\.npz lacks its password or key, which no file of a run keeps\. "
        r"Give the whole URL again"
    )
    with pytest.raises(UserError, match=message):
        storage.read_bytes("https://me:***@host/w.npz")
