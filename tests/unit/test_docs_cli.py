"""docs/cli.md and the command say the same: every command, option, setting, variable and JSON key, none too many."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

from collector.settings import CollectorSettings
from schemas import codes
from schemas.structs import KNOBS, TIMEOUTS
from sink.client import History
from sink.history import suggest
from sink.history.audit import Question, Text
from sink.history.changes import Change
from sink.settings import SinkSettings
from sink.store import Commit, memory_store, prepare
from tests.support import batches
from tests.support.docs import DOCS, ROOT, blocks, documents, marked
from ztlens import command, config, judging, verdicts
from ztlens.commands.audit import CAUSES
from ztlens.main import app, main

DOCUMENT = DOCS / "cli.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
ROOT_ONLY = {"--version", "--install-completion", "--show-completion"}
HELP = {"-h", "--help"}
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def commands() -> dict[str, Any]:
    """`policy check` → its click command; groups are not commands."""

    def walk(given: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        subs = getattr(given, "commands", None)
        if subs is None:
            yield " ".join(path), given
            return
        for name, sub in subs.items():
            yield from walk(sub, (*path, name))

    return dict(walk(get_command(app), ()))


def options(given: Any) -> set[str]:
    """Every spelling of every option of a click command."""
    return {
        spelling for parameter in given.params if parameter.param_type_name == "option"
        for spelling in (*parameter.opts, *parameter.secondary_opts)
    }  # fmt: skip


def section(title: str) -> str:
    """The text below a heading `### title`, up to the next one."""
    found = re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"docs/cli.md has no section {title!r}"
    return found[1]


def cells(title: str, column: int = 1) -> list[str]:
    """A column of the tables of a section, without their heads."""
    rows = [re.split(r"(?<!\\)\|", line) for line in section(title).splitlines() if line.startswith("| ")]
    return [row[column].strip() for row in rows if row[1].strip().startswith("`")]


def documented_options(title: str) -> set[str]:
    return {spelling for cell in cells(title) for spelling in OPTION.findall(cell)}


COMMANDS = commands()
COMMON = options(COMMANDS["down"])


def test_common_options() -> None:
    assert documented_options("Common options") == COMMON | HELP
    assert len(COMMON) == len(command.COMMON)
    assert options(get_command(app)) == COMMON | ROOT_ONLY
    for option in ROOT_ONLY:
        assert f"`{option}`" in section("Common options")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command(name: str) -> None:
    own = options(COMMANDS[name]) - COMMON
    assert documented_options(name) == own


def test_no_command_too_many() -> None:
    titles = set(re.findall(r"^### (.+)$", TEXT, re.MULTILINE)) - {"Common options", "Other variables"}
    assert titles == set(COMMANDS)


def code_of(file: Path) -> list[str]:
    """Lines of blocks and spans of code."""
    text = file.read_text(encoding="utf-8")
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return spans + [line for block in blocks(file) for line in block.text.splitlines()]


def test_commands_named_in_all_documents_exist() -> None:
    """What follows `ztlens` in code is a command there is."""
    first = {name.split()[0] for name in COMMANDS}
    for file in documents():
        for line in code_of(file):
            for word in re.findall(r"(?:^|[$` /])ztlens (?:--?[\w-]+(?: [\w./]+)? )?([a-z]+)\b", line):
                assert word in first, f"{file.name}: {line}"


def test_options_named_in_all_documents_exist() -> None:
    known = COMMON | ROOT_ONLY | HELP | {o for given in COMMANDS.values() for o in options(given)}
    for file in documents():
        for line in re.findall(r"(?:ztlens|demo\.sh) [^`|\n#]*", file.read_text(encoding="utf-8")):
            for option in OPTION.findall(re.sub(r"\"[^\"]*\"|'[^']*'", "", line)):
                assert option in known, f"{file.name}: {line}"


def test_settings() -> None:
    documented = [cell.strip("`") for cell in cells("Settings")]
    assert documented == [setting.name for setting in config.SETTINGS]


def test_defaults() -> None:
    """Those with a number or a word; the others are told in prose."""
    shown = dict(zip((c.strip("`") for c in cells("Settings")), cells("Settings", 2), strict=True))
    owners: dict[str, Any] = {"collector": CollectorSettings, "sink": SinkSettings}
    for setting in config.SETTINGS:
        if setting.owner:
            default = owners[setting.owner].__dataclass_fields__[setting.name].default
            text = shown[setting.name]
            expected = setting.parse(text.replace(" days", "d")) if text else None
            assert expected == default, setting.name
    settings = config.load({}, {}, Path("/dev/null"))
    assert settings.state == config.STATE == Path("/var/lib/ztlens")
    assert settings.run_dir == Path("/run/ztlens/default")
    assert settings.pins == Path("/sys/fs/bpf/ztlens/default")
    assert settings.database == Path("/var/lib/ztlens/ztlens.duckdb")
    assert settings["nats_port"] == int(shown["nats_port"])


def test_the_settings_file_shown_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "ztlens.toml"
    file.write_text(marked(DOCUMENT, "settings")["example"].text, encoding="utf-8")
    settings = config.load({}, {}, file)
    assert settings["interfaces"] == ("eth0", "eth1:ingress")
    assert settings["keep_age"] == 90 * 86400
    assert settings["knobs"] == {"FLOWS_MAX": 1 << 20, "RING_BYTES": 256 << 20}
    assert set(settings["knobs"]) <= {knob.name for knob in KNOBS}
    assert settings["timeouts"] == {"UDP": 120}


def test_timeouts() -> None:
    paragraph = re.search(r"^Classes of `timeouts`.*?\n\n", TEXT, re.MULTILINE | re.DOTALL)
    assert paragraph
    found = re.findall(r"`([A-Z_]+)` (\d+)", paragraph[0])
    assert {name: int(seconds) for name, seconds in found} == TIMEOUTS


def variables_read() -> set[str]:
    """Variables of the environment that the program asks for by name."""
    found = set()
    for room in ("ztlens", "collector", "sink", "policy", "schemas"):
        for file in (ROOT / room).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            found |= set(re.findall(r'"(ZTLENS_[A-Z_]+)"', text))
            found |= set(re.findall(r'environ(?:ment)?(?:\.get\(|\[)"([A-Z_]+)"', text))
    return found - {"PYTHONPATH", "PATH"}


def test_variables() -> None:
    assert {cell.strip("`") for cell in cells("Other variables")} == variables_read()


def test_variables_named_in_all_documents_exist() -> None:
    known = variables_read() | {f"ZTLENS_{setting.name.upper()}" for setting in config.SETTINGS}
    known |= {"ZTLENS_NATS_PASSWORD", "ZTLENS_GRAFANA_PASSWORD"}  # of compose.yaml
    for file in documents():
        for name in re.findall(r"ZTLENS_[A-Z_]+[A-Z]", file.read_text(encoding="utf-8")):
            assert name in known, f"{file.name}: {name}"


def json_words(title: str) -> list[str]:
    """The words of the code behind `JSON` in a section."""
    return re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", section(title).partition("JSON")[2])))


def test_json_of_verdicts() -> None:
    assert json_words("observe")[: len(verdicts.COLUMNS)] == list(verdicts.COLUMNS)
    assert tuple(json_words("judge")[: len(judging.FIELDS)]) == judging.FIELDS


def test_json_of_the_ledger() -> None:
    store = memory_store()
    store.append(Commit(records=[batches.loss_record(0)]))
    document = History.on_store(store).ledger()
    ring = document["rings"][0]
    gap = {"first", "past", "count", "time", "cause"}
    loss = {"kind", "decision", "events", "since", "until"}
    step = {"time", "seconds"}
    assert set(json_words("ledger")) == {*document, *ring, *ring["packets"], *ring["events"]} | gap | loss | step


def test_json_of_an_audit() -> None:
    store = memory_store()
    store.append(Commit(batches=[prepare(batches.batch(batches.verdict(flags=2)))]))
    document = History.on_store(store).audit(Question(candidate=Text("version: 1")))
    words = json_words("audit")
    lists = [document["candidate"], document["uncertain"][0], document["unchanged"]]
    assert set(words) == {*document, *(key for each in lists for key in each)}
    named = re.search(r"^JSON: `([^`]+)`", section("audit"), re.MULTILINE)
    assert named
    assert [word for word in re.findall(r"\w+", named[1]) if word not in ("file", "hash")] == [*document]
    entry = re.search(r"an entry is\n`([^`]+)`", section("audit"))
    assert entry
    assert re.findall(r"\w+", entry[1]) == [*document["uncertain"][0]]
    causes = {codes.word(change) for change in Change if change >= Change.MIDSTREAM}
    assert {cell.strip("`") for cell in cells("audit") if not cell.startswith("`-")} == causes == set(CAUSES)


def test_json_of_a_suggestion() -> None:
    store = memory_store()
    midstream = batches.verdict(flags=2, flow_id=2, sport=50000, dport=50001)
    store.append(Commit(batches=[prepare(batches.batch(np.concatenate([batches.verdict(), midstream])))]))
    document = History.on_store(store).suggest(suggest.Question())
    left_out = document["left_out"]
    lists = [document["rules"][0], document["rules"][0]["opens"], left_out, left_out["denied"], left_out["unsure"]]
    lists += left_out["unsure"]["tuples"]
    code = re.sub(r"`(null|ztlens audit|--diff|policy diff)`", "", section("policy suggest").partition("JSON:")[2])
    words = re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", code)))
    assert set(words) == {"opened", *document, *(key for each in lists for key in each)}
    assert words[: len(document) + 1] == [*document, "opened"]


@pytest.mark.parametrize("arguments", [["policy", "check", str(ROOT / "policy.yaml")], ["version"], ["config"]])
def test_json_of_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    keys = list(document if isinstance(document, dict) else document[0])
    assert json_words(" ".join(arguments[:2]) if arguments[0] == "policy" else arguments[0])[: len(keys)] == keys
