"""Any text for a setting, from any of its three sources, is a value or causes one plain line of error."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from cli.one_line import OneLineGroup
from cli.options import SettingsCommand, load_settings, settings_options
from cocoa_tornado.errors import SettingError
from cocoa_tornado.settings import TABLE
from cocoa_tornado.settings import types as kinds
from cocoa_tornado.settings.rows import Setting
from cocoa_tornado.settings.sources import Loaded, check_files, load
from cocoa_tornado.settings.types import Kind, WrongValue

from .any_text import MAX_WRONG_VALUE, any_text, argument, assert_done_or_plain_line, assert_plain_line, slips_in
from .each import assert_each

VALID = (
    *("127.0.0.1", "[::1]", "fe80::1%eth0", "gateway.example", "0", "8080", "-1", "0.5", "999999999999999999"),
    *("123456789.123456789", "250ms", "1h30m", "7d", "0.001", "9ms", "0.0000001", "512KiB", "1MiB", "10MB"),
    *("true", "NO", "hunter2", "@/etc/hostname", "@~nobody/x", "@hunter2", "key:secret", "a/b.pem", "~/x", "./~x"),
    *("./{x", "https://i.example/jwks.json", "http://[::1]:80/", "https://b\u00fccher.example/", "memory://"),
    *("kafka://a,b:9093", "kafka://[fe80::1%eth0]:1,b", "local://", "redis://u:p@h:6379/0", "rediss://[::1]:1/2"),
    *("sqlite:///a%20b.db", "sqlite:////v/x.db", "auto", "none://", "pocketsphinx:///a?dict=x&lm=y", "whisper://base"),
    *("whisper://./m%20x?beam=2", "google://?project=p&model=short", "*", "null", "https://*.example", "10.0.0.0/8"),
    *("fd00::/8", "10.0.0.7/255.255.255.255", "HS256", "en-US", "cocoa-gateway", "SASL_SSL", "info"),
)
texts = any_text | slips_in(VALID)


def name_of(kind: Kind[Any]) -> str:
    """The identity of a kind: its type and its arguments."""
    if isinstance(kind, kinds.ListOf):
        return f"ListOf({name_of(kind.item)})"
    return f"Choice{kind.words}" if isinstance(kind, kinds.Choice) else repr(kind)


KINDS: Mapping[str, Setting] = {name_of(row.kind): row for row in TABLE.values()}
"""One setting for each kind, as many as differ in anything."""
CLASSES: Mapping[str, Setting] = {
    f"{type(row.kind).__name__} {type(getattr(row.kind, 'item', None)).__name__}": row for row in KINDS.values()
}
"""One setting for each class of kinds, in a list or not."""

# Every text below was a traceback, more than one line, a line of thousands of characters, or a value that was not read
# back as it was written.
FOUND = (
    *("0\x1f", "\x1c8\r", "\x1e0.5", "1\x1d", "\x1f-1"),
    *("0.071", "0.6001", "0.0000001", "0.00000019ms", "9ms"),
    *("99999999999999999", "12345789.123456789", "999999999999999999", "0.000000000000000001"),
    *("fe80::1%\x1bth0", "kafka://[fe80::1%\n]", "kafka://a\n,b", "redis://ho\nst", "redis://us\x1ber@host"),
    *("@./\x0bope", "@/a\nb", "@~/x\U000ba05f", "@/" + "a" * 5000, "./{", "./~root", "./ {x"),
    *("sqlite:///a%0Ab", "whisper:///a%0Ab", "whisper://./m%x?beam=2", "sqlite:///v/\U000e2d2d.Yb"),
    *("/" + "9" * 5000, "pocketsphinx:///" + "a" * 300, "google://?" + "k" * 5000 + "=1"),
    *("http://a b/", "http://a..b/", "http://[", "redis://[", "whisper://["),
)


def found_before(test: Callable[..., None]) -> Callable[..., None]:
    """All of :data:`FOUND` as explicit examples."""
    for text in FOUND:
        test = example(text=text)(test)
    return test


def check_read_back(kind: Kind[Any], value: Any) -> None:
    """A formatted value parses back to the same value, also relative to any folder."""
    for one in value if isinstance(kind, kinds.ListOf) else [value]:
        item = kind.item if isinstance(kind, kinds.ListOf) else kind
        assert item.from_text(item.show(one)) == one
    for folder in (Path(), Path("/etc/cocoa"), Path("/etc/\udcff")):
        try:
            kind.relative_to(value, folder)
        except WrongValue as error:
            assert_plain_line(str(error))


@given(text=texts)
@found_before
def test_any_text_is_a_value_of_a_kind_or_one_plain_line(text: str) -> None:
    def check_text(row: Setting) -> None:
        try:
            value = row.kind.from_text(text)
        except WrongValue as error:
            assert_plain_line(str(error), MAX_WRONG_VALUE)
        else:
            check_read_back(row.kind, value)

    assert_each(KINDS.values(), check_text)


URLS = [row for row in KINDS.values() if not {"URL", "PATH", "ORIGIN", "HOST"}.isdisjoint(row.kind.metavar.split("|"))]
"""A setting for each kind whose value is a URL, or might be taken for one."""
passwords = any_text | st.sampled_from(["pa/ss", "p#w", "p?w", "p@w", "u:p/w", "1/x", "1?x=", "[", " "])
schemes = st.sampled_from(["redis", "https", "kafka", "sqlite", "whisper", "local"])
slashes = st.sampled_from(["://u:", "://:", ":/u:", ":u:", "//u:"])


@given(scheme=schemes, user=slashes, password=passwords)
@example(scheme="redis", user="://:", password="pa/ss")
@example(scheme="redis", user="://u:", password="p#w")
@example(scheme="redis", user=":/u:", password="pw")
@example(scheme="https", user="://u:", password="p/w")
@example(scheme="https", user=":/u:", password="pw")  # was the path of a key that cannot be read
def test_no_password_of_an_invalid_url_is_shown(scheme: str, user: str, password: str) -> None:
    url = f"{scheme}{user}{password}hunter2@h/0"

    def check_hidden(row: Setting) -> None:
        problem = ""
        try:
            check_files(load(None, {row.environment: json.dumps([url]) if row.is_list else url}, {}))
        except SettingError as error:
            problem = str(error)
        assert "hunter2" not in problem

    assert len(URLS) >= 8
    assert_each(URLS, check_hidden)


typed_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@given(value=typed_values)
@example(value=16**5000)  # TOML's 0xffff...; str() refuses so many decimal digits
@example(value=-(16**5000))
@example(value=10**400)  # larger than any float
@example(value=-0.0)
@example(value=5e-324)
@example(value=1e308)
@example(value=["0\x1f"])
def test_any_typed_value_is_a_value_of_a_kind_or_one_plain_line(value: object) -> None:
    def check_value(row: Setting) -> None:
        try:
            result = row.kind.from_value(value)
        except WrongValue as error:
            assert_plain_line(str(error), MAX_WRONG_VALUE)
        else:
            check_read_back(row.kind, result)

    assert_each(KINDS.values(), check_value)


# The three sources


def check_loads(config: Path | None, environ: Mapping[str, str], options: Mapping[str, object]) -> None:
    """The sources yield settings that can be shown and checked, or one plain line of error."""
    try:
        loaded = load(config, environ, options)
        repr(loaded.settings)
        check_files(loaded)
    except SettingError as error:
        assert_plain_line(str(error))


@given(text=texts)
@found_before
@example(text='["\ud800"]')
@example(text='[["a"]]')
@example(text="[" + "9" * 5000 + "]")
def test_any_text_in_the_environment_is_settings_or_one_plain_line(text: str) -> None:
    assert_each(CLASSES.values(), lambda row: check_loads(None, {row.environment: text}, {}))


@given(text=texts)
@example(text="\x1b[2J\nPORT")
@example(text="a" * 5000)
def test_any_name_of_a_variable_is_ignored_or_one_plain_line(text: str) -> None:
    check_loads(None, {f"COCOA_{text}": "1"}, {})
    check_loads(None, {f"COCOA_POR{text}": "1"}, {})
    check_loads(None, {"COCOA_CONFIG": f"/absent/{text}"}, {})


@given(text=texts)
@found_before
def test_any_text_of_an_option_is_settings_or_one_plain_line(text: str) -> None:
    assert_each(CLASSES.values(), lambda row: check_loads(None, {}, {row.key: (text,) if row.is_list else text}))


@click.group(cls=OneLineGroup)
def group() -> None:
    """The commands below, with the errors of the real one."""


@group.command(cls=SettingsCommand)
@settings_options({row.key for row in CLASSES.values()})
def command(config: Path | None, **options: object) -> Loaded:
    return load_settings(config, options, {})


@given(row=st.sampled_from(list(CLASSES.values())), text=texts)
@example(row=TABLE["port"], text="0\x1f")
@example(row=TABLE["port"], text="9" * 5000)
@example(row=TABLE["host"], text="\ud800")
@example(row=TABLE["host"], text="\0")
@example(row=TABLE["access_log"], text="\x1b[2J" + "x" * 5000)
def test_any_command_line_is_taken_or_one_plain_line_and_status_2(row: Setting, text: str) -> None:
    text = argument(text)
    for arguments in ([f"{row.option}={text}"], [f"{row.option}{text}=1"], ["--config", f"/absent/{text}"], [text]):
        # A word that begins like an option for help asks for help.
        if arguments[0] in ("--help", "--h", "--he", "--hel"):
            continue
        result = CliRunner().invoke(group, ["command", *arguments])
        assert_done_or_plain_line(result, 2)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a configuration file, which is rewritten."""
    return tmp_path_factory.mktemp("any") / "x.toml"


def toml_string(text: str) -> str:
    """A TOML string. Text that UTF-8 cannot encode is written as the original undecoded bytes."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


@given(text=texts)
@found_before
def test_any_text_in_a_file_is_settings_or_one_plain_line(config: Path, text: str) -> None:
    def check_string(row: Setting) -> None:
        value = f"[{toml_string(text)}]" if row.is_list else toml_string(text)
        config.write_bytes(f"{row.key} = {value}".encode("utf-8", "surrogatepass"))
        check_loads(config, {}, {})

    assert_each(CLASSES.values(), check_string)


literals = st.recursive(
    st.sampled_from(
        [
            *("0", "-1", "8080", "0xff", "0o17", "0b1", "1_000", "9" * 400, "0x" + "f" * 5000, "0b1" + "0" * 20000),
            *("0.5", "-0.0", "1e308", "1e999", "5e-324", "1e-7", "1e18", "nan", "-nan", "inf", "-inf", "true", "false"),
            *("2024-01-01", "07:32:00", "2024-01-01T00:00:00Z", "1979-05-27T07:32:00.999999-07:00"),
            *('""', '"1h"', '"1MiB"', '"0\\u001f"', "'x'", '"""\n\n"""', "[]", "{}"),
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]") | inner.map("{{ x = {} }}".format)
    ),
    max_leaves=4,
)


@given(literal=literals)
@example(literal="0x" + "f" * 5000)
@example(literal="-0.0")
@example(literal="5e-324")
@example(literal="1e18")
@example(literal="[[[[[[]]]]]]")
def test_any_value_in_a_file_is_settings_or_one_plain_line(config: Path, literal: str) -> None:
    def check_literal(row: Setting) -> None:
        config.write_text(f"{row.key} = {literal}", encoding="utf-8")
        check_loads(config, {}, {})

    assert_each(CLASSES.values(), check_literal)


@given(name=texts)
@example(name="a\nb")
@example(name="a" * 5000)
@example(name="por\x1bt")
def test_any_key_in_a_file_is_a_setting_or_one_plain_line(config: Path, name: str) -> None:
    # The second has the key both as it is and in a table, which is an error that names both.
    for lines in (f"{toml_string(name)} = 1", f"{toml_string(name + '_b')} = 1\n[{toml_string(name)}]\nb = 2"):
        config.write_bytes(lines.encode("utf-8", "surrogatepass"))
        check_loads(config, {}, {})
