"""Settings: options over environment (ZTLENS_*) over the file over the default, each with where it came from.

Every setting is declared once, in SETTINGS. Those of the two services (`owner`) have no default here: the service's
own settings class has it, and only what somebody set is passed on. policy.yaml is not a setting but a document.
"""

import difflib
import json
import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas import times
from schemas.errors import InputError
from ztlens.errors import BadInput

DEFAULT_FILE = Path("/etc/ztlens.toml")
STATE = Path("/var/lib/ztlens")
RUN = Path("/run/ztlens")
PINS = Path("/sys/fs/bpf/ztlens")
HOOKS = ("both", "ingress", "egress")
_COMMA = re.compile(r",(?![^\[]*\])")  # one between brackets belongs to a pattern: veth[1,2]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value


def _name(value: object) -> str:
    text = _text(value)
    if not text or text.startswith((".", "-")) or not all(c.isalnum() or c in "._-" for c in text):
        raise ValueError("only letters, digits, dot, dash and underscore make a name")
    return text


def _instance(value: object) -> str:
    name = _name(value)
    if "." in name:
        raise ValueError("bpffs, where the kernel side is pinned, allows no dot in a name")
    return name


def _path(value: object) -> Path:
    text = _text(value)
    if not text:
        raise ValueError("an empty path")
    return Path(text).expanduser().absolute()


def _whole(value: object) -> int:
    number = int(str(value).replace("_", ""))
    if number < 0 or isinstance(value, bool):
        raise ValueError("not a number of 0 or more")
    return number


def _seconds(value: object) -> float:
    return times.duration(str(value))


def _bytes(value: object) -> int:
    return times.size(str(value))


def _port(value: object) -> int:
    number = _whole(value)
    if number > 65535:
        raise ValueError("ports end at 65535")
    return number


def _listen(value: object, lowest: int = 1) -> str:
    text = _text(value)
    host, colon, port = text.rpartition(":")
    if text and not (colon and host.strip("[]") and port.isdecimal() and lowest <= int(port) < 65536):
        raise ValueError("write HOST:PORT, as 127.0.0.1:9975 or [::1]:9975")
    return text


def _web(value: object) -> str:
    return "off" if value == "off" else _listen(value, lowest=0)


def _names(value: object) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        raise ValueError("a list of names")
    return tuple(_text(part).strip() for part in parts if _text(part).strip())


def _mode(value: object) -> str:
    if value not in ("monitor", "enforce"):
        raise ValueError("monitor or enforce")
    return str(value)


def _loader(value: object) -> str:
    if value not in ("auto", "core", "bcc"):
        raise ValueError("auto, core or bcc")
    return str(value)


def _interfaces(value: object) -> tuple[str, ...]:
    parts = _COMMA.split(value) if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        raise ValueError("a list of interfaces")
    names = tuple(_text(part).strip() for part in parts if _text(part).strip())
    for name in names:
        split_interface(name)
    return names


def _table(value: object) -> dict[str, int]:
    if isinstance(value, str):
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        return {name.strip().upper(): _amount(number) for name, _, number in pairs}
    if not isinstance(value, dict):
        raise ValueError("a table of numbers")
    return {str(name).upper(): _amount(number) for name, number in value.items()}


def _amount(value: object) -> int:
    return times.size(str(value).strip())


def split_interface(text: str) -> tuple[str, str]:
    """`NAME[:ingress|egress|both]` → (name or pattern of names, hooks). Raises BadInput."""
    name, _, hooks = text.partition(":")
    hooks = hooks or "both"
    too_long = len(name.encode()) > 15 and set(name).isdisjoint("*?[")  # a pattern may be longer than what it matches
    if not name or hooks not in HOOKS or too_long or "/" in name:
        raise BadInput(f"{text!r} is not an interface", "write NAME, NAME:ingress, NAME:egress or NAME:both")
    return name, hooks


@dataclass(frozen=True)
class Setting:
    """One setting: `parse` takes a text (option, environment) or a TOML value and raises ValueError or BadInput."""

    name: str
    parse: Callable[[object], Any]
    meaning: str
    default: Callable[[Mapping[str, Any]], Any] | None = None
    owner: str = ""
    secret: bool = False


SETTINGS: tuple[Setting, ...] = (
    Setting("instance", _instance, "name of this installation on the host", lambda s: "default"),
    Setting("node", _name, "name of this host in verdicts and subjects", lambda s: socket.gethostname()),
    Setting("state", _path, "directory of everything that is kept",
            lambda s: STATE if s["instance"] == "default" else STATE / s["instance"]),
    Setting("run_dir", _path, "directory of sockets and locks", lambda s: RUN / s["instance"]),
    Setting("database", _path, "the DuckDB file", lambda s: s["state"] / "ztlens.duckdb"),
    Setting("nats", _text, "URL of a running NATS server; empty: `up` starts one", lambda s: "", secret=True),
    Setting("nats_server", _text, "the nats-server program; empty: PATH, then the Python package", lambda s: ""),
    Setting("nats_port", _port, "port of the bundled NATS on 127.0.0.1; 0: any free one", lambda s: 0),
    Setting("interfaces", _interfaces, "what to watch: NAME or pattern, [:ingress|egress|both]", lambda s: ()),
    Setting("netns", _text, "network namespace of the interfaces; empty: this one", lambda s: ""),
    Setting("policy", _path, "policy.yaml to start with", lambda s: None),
    Setting("metrics", _listen, "HOST:PORT where Prometheus may ask, of `up` the sink at the next port; empty: nowhere",
            lambda s: ""),
    Setting("mode", _mode, "monitor or enforce; unset: as the datapath was, first monitor", lambda s: ""),
    Setting("web", _web, "HOST:PORT where the page listens, port 0: any free one; or off", lambda s: "127.0.0.1:7420"),
    Setting("web_names", _names, "by what names else browsers reach the page; needed off loopback", lambda s: ()),
    Setting("pins", _path, "where the kernel side is pinned", lambda s: PINS / s["instance"]),
    Setting("loader", _loader, "core: an object built once; bcc: compiled at each start; auto: core if it is there",
            lambda s: "auto"),
    Setting("knobs", _table, "sizes of the kernel side, by name of docs/schema.md", lambda s: {}),
    Setting("timeouts", _table, "seconds until a silent flow is over, by class", lambda s: {}),
    Setting("sample", _whole, "an event for 1 in N packets of a flow; 0: none", owner="collector"),
    Setting("budget", _whole, "events a second and CPU", owner="collector"),
    Setting("midstream_seconds", _whole, "how long TCP without a SYN is judged both ways", owner="collector"),
    Setting("live_cap", _whole, "live subjects: verdicts a second", owner="collector"),
    Setting("batch", _whole, "verdicts a message", owner="collector"),
    Setting("batch_wait", _seconds, "seconds from a batch to the next, smaller one", owner="collector"),
    Setting("stream_max_bytes", _bytes, "what the stream VERDICTS keeps", owner="collector"),
    Setting("stream_max_age", _seconds, "how long the stream VERDICTS keeps", owner="collector"),
    Setting("keep_age", _seconds, "how long verdicts are kept", owner="sink"),
    Setting("keep_minutes", _seconds, "how long sums by minute are kept", owner="sink"),
    Setting("keep_hours", _seconds, "how long sums by hour are kept", owner="sink"),
    Setting("keep_bytes", _bytes, "how large history may grow", owner="sink"),
    Setting("archive", _path, "where verdicts are exported to before they are deleted", owner="sink"),
    Setting("commit_rows", _whole, "rows a transaction", owner="sink"),
    Setting("commit_wait", _seconds, "seconds from a transaction to the next, smaller one", owner="sink"),
    Setting("readers", _whole, "queries at the same time", owner="sink"),
    Setting("query_timeout", _seconds, "seconds a query may take", owner="sink"),
    Setting("answer_rows", _whole, "rows an answer may have", owner="sink"),
    Setting("audit_timeout", _seconds, "seconds an audit may take", owner="sink"),
    Setting("memory_limit", _text, "DuckDB's memory", owner="sink"),
    Setting("process_memory", _bytes, "memory of the sink's process", owner="sink"),
)  # fmt: skip
BY_NAME = {setting.name: setting for setting in SETTINGS}


@dataclass(frozen=True)
class Settings:
    """Values by name and where each came from (`default`, `ZTLENS_STATE`, a file's name, `--state`)."""

    values: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def instance(self) -> str:
        return self.values["instance"]

    @property
    def node(self) -> str:
        return self.values["node"]

    @property
    def state(self) -> Path:
        return self.values["state"]

    @property
    def run_dir(self) -> Path:
        return self.values["run_dir"]

    @property
    def database(self) -> Path:
        return self.values["database"]

    @property
    def nats(self) -> str:
        return self.values["nats"]

    @property
    def pins(self) -> Path:
        return self.values["pins"]

    def given(self, name: str) -> bool:
        """Whether somebody set it."""
        return self.origins.get(name, "default") != "default"

    def owned(self, owner: str) -> dict[str, Any]:
        """What was set of a service's own settings."""
        return {s.name: self.values[s.name] for s in SETTINGS if s.owner == owner and self.values[s.name] is not None}

    def replaced(self, **values: Any) -> "Settings":
        """A copy with other values (set by ztlens itself)."""
        return Settings(self.values | values, self.origins | dict.fromkeys(values, "ztlens up"))

    def toml(self) -> str:
        """Everything that is set, as a settings file (`load` reads it back)."""
        plain, tables = [], []
        for name, value in self.values.items():
            if value is None or (name == "mode" and not value):
                continue
            if isinstance(value, dict):
                tables.append(f"\n[{name}]\n" + "".join(f"{key} = {number}\n" for key, number in value.items()))
            else:
                plain.append(f"{name} = {_toml_value(value)}\n")
        return "".join(plain + tables)


def _toml_value(value: object) -> str:
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(part) for part in value) + "]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def load(
    options: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Settings:
    """Settings from options (name → text; None: not given), environment and file.

    `file` None: ZTLENS_CONFIG, else /etc/ztlens.toml if it is there. Raises BadInput naming the origin.
    """
    environment = os.environ if environment is None else environment
    found = _read_file(file, environment)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for setting in SETTINGS:
        option = f"--{setting.name.replace('_', '-')}"
        variable = f"ZTLENS_{setting.name.upper()}"
        given = (options or {}).get(setting.name)
        if given is not None:
            values[setting.name], origins[setting.name] = _parsed(setting, given, option), option
        elif environment.get(variable):
            values[setting.name], origins[setting.name] = _parsed(setting, environment[variable], variable), variable
        elif setting.name in found:
            origin, raw = found[setting.name]
            values[setting.name], origins[setting.name] = _parsed(setting, raw, f"{setting.name} in {origin}"), origin
        else:
            values[setting.name] = setting.default(values) if setting.default else None
            origins[setting.name] = "default"
    return Settings(values, origins)


def parsed(name: str, raw: object) -> Any:
    """The value of a command's own option that is a setting. Raises BadInput."""
    return _parsed(BY_NAME[name], raw, f"--{name.replace('_', '-')}")


def _parsed(setting: Setting, raw: object, where: str) -> Any:
    try:
        return setting.parse(raw)
    except (BadInput, InputError) as error:
        raise BadInput(f"{where}: {error}", error.hint) from error
    except (ValueError, TypeError) as error:
        raise BadInput(f"{where}: {raw!r} cannot be used: {error}", f"{setting.name}: {setting.meaning}") from error


def _read_file(file: Path | None, environment: Mapping[str, str]) -> dict[str, tuple[str, object]]:
    """Setting → (file, raw value)."""
    if file is None:
        file = Path(environment["ZTLENS_CONFIG"]) if environment.get("ZTLENS_CONFIG") else None
        if file is None:
            if not DEFAULT_FILE.exists():
                return {}
            file = DEFAULT_FILE
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: {error}", "settings files are TOML; `ztlens config` prints every name") from error
    for name in document:
        if name not in BY_NAME:
            near = difflib.get_close_matches(name, BY_NAME, 1)
            hint = f"did you mean {near[0]}?" if near else "`ztlens config` prints every name"
            raise BadInput(f"{file}: there is no setting {name!r}", hint)
    return {name: (str(file), value) for name, value in document.items()}
