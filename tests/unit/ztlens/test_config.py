"""Where a setting comes from: option over environment over file over default."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztlens import config
from ztlens.command import with_options
from ztlens.errors import BadInput
from ztlens.nats import write_private

EMPTY = Path(os.devnull)


def test_defaults_follow_the_instance() -> None:
    plain = config.load({}, {}, EMPTY)
    assert (plain.instance, plain.state, plain.run_dir, plain.database, plain.pins) == (
        "default", Path("/var/lib/ztlens"), Path("/run/ztlens/default"), Path("/var/lib/ztlens/ztlens.duckdb"),
        Path("/sys/fs/bpf/ztlens/default"),
    )  # fmt: skip
    other = config.load({"instance": "lab"}, {}, EMPTY)
    assert (other.state, other.run_dir, other.pins) == (
        Path("/var/lib/ztlens/lab"), Path("/run/ztlens/lab"), Path("/sys/fs/bpf/ztlens/lab"),
    )  # fmt: skip
    assert set(plain.origins.values()) == {"default"}


def test_each_source_beats_the_next(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('node = "file"\nsample = 3\nbudget = 4\n')
    environment = {"ZTLENS_NODE": "environment", "ZTLENS_SAMPLE": "2"}
    found = config.load({"node": "option"}, environment, file)
    assert [(found[name], found.origins[name]) for name in ("node", "sample", "budget", "live_cap")] == [
        ("option", "--node"), (2, "ZTLENS_SAMPLE"), (4, str(file)), (None, "default"),
    ]  # fmt: skip
    assert found.owned("collector") == {"sample": 2, "budget": 4}
    assert found.given("node") and not found.given("live_cap")


def test_the_settings_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('interfaces = ["eth0", "eth1:ingress"]\n[knobs]\nring_bytes = "1MiB"\n')
    found = config.load({}, {"ZTLENS_CONFIG": str(file)})
    assert found["interfaces"] == ("eth0", "eth1:ingress")
    assert found["knobs"] == {"RING_BYTES": 1 << 20}


def test_what_a_child_reads_is_what_was_written(tmp_path: Path) -> None:
    first = with_options(
        config.load({"state": str(tmp_path / 'with "quotes" and ü')}, {}, EMPTY),
        interfaces=["eth0", "eth1:egress"], policy=str(tmp_path / "p.yaml"), mode="enforce", knobs={"FLOWS_MAX": 4096},
        nats="nats://u:p@127.0.0.1:4222", batch_wait="50ms",
    )  # fmt: skip
    file = tmp_path / "up.toml"
    file.write_text(first.toml())
    assert config.load({}, {}, file).values == first.values


@given(st.dictionaries(st.sampled_from(["node", "netns", "nats", "nats_server"]), st.text(max_size=20), max_size=4))
def test_any_text_survives_the_file(tmp_path_factory: pytest.TempPathFactory, texts: dict[str, str]) -> None:
    values = config.load({}, {}, EMPTY).replaced(**texts)
    file = tmp_path_factory.mktemp("toml") / "up.toml"
    try:
        file.write_text(values.toml(), encoding="utf-8")
    except UnicodeEncodeError:  # a lone surrogate is no text anybody can pass on
        return
    try:
        again = config.load({}, {}, file)
    except BadInput as error:
        assert "node" in str(error)  # names are checked, other texts are not
        return
    assert {name: again[name] for name in texts} == texts


@pytest.mark.parametrize(
    ("options", "environment", "text", "says"),
    [
        ({"instance": "a/b"}, {}, "", "--instance"),
        ({"instance": "a.b"}, {}, "", "--instance"),
        ({"nats_port": "70000"}, {}, "", "--nats-port"),
        ({}, {"ZTLENS_SAMPLE": "many"}, "", "ZTLENS_SAMPLE"),
        ({}, {"ZTLENS_SAMPLE": "-1"}, "", "ZTLENS_SAMPLE"),
        ({}, {"ZTLENS_INTERFACES": "eth0:sideways"}, "", "ZTLENS_INTERFACES"),
        ({}, {}, "sampel = 3", "did you mean sample?"),
        ({}, {}, "sample = true", "sample in"),
        ({}, {}, "sample = [", "settings.toml"),
        ({}, {}, 'mode = "off"', "mode in"),
        ({}, {}, 'keep_age = "soon"', "keep_age in"),
        ({}, {}, "interfaces = 3", "interfaces in"),
    ],
)
def test_what_cannot_be_used_is_named(
    tmp_path: Path, options: dict[str, object], environment: dict[str, str], text: str, says: str
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(BadInput) as caught:
        config.load(options, environment, file)
    assert says in f"{caught.value} {caught.value.hint}"
    assert "\n" not in str(caught.value)


def test_a_settings_file_that_is_not_there_is_an_error_if_it_was_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        config.load({}, {}, tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("eth0", ("eth0", "both")), ("v:ingress", ("v", "ingress")), ("v:egress", ("v", "egress"))],
)
def test_interfaces_name_their_hooks(text: str, expected: tuple[str, str]) -> None:
    assert config.split_interface(text) == expected


@pytest.mark.parametrize("text", ["", ":both", "eth0:up", "a-name-longer-than-15", "a/b"])
def test_what_is_no_interface(text: str) -> None:
    with pytest.raises(BadInput):
        config.split_interface(text)


def test_credentials_are_written_for_the_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "up.toml"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "secret")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("secret", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_a_comma_between_brackets_belongs_to_the_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZTLENS_INTERFACES", "veth[1,2]:ingress,eth0,[!l,x]*")
    assert config.load({}, None, EMPTY)["interfaces"] == ("veth[1,2]:ingress", "eth0", "[!l,x]*")
