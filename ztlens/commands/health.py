"""`status`, `doctor`, `config`, `version`: how it is, what is missing, what is set."""

import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from schemas import times
from ztlens import config, running, show
from ztlens.command import installation
from ztlens.commands.history import check_output
from ztlens.config import Settings
from ztlens.errors import MISSING, Missing, explain, one_line

Output = Annotated[str, typer.Option("-o", "--output", metavar="table|json")]
BOTH = ("table", "json")
DISK_LOW = 1 << 30


def add(app: typer.Typer) -> None:
    """Register the commands."""
    installation(app, "status")(status)
    installation(app, "doctor")(doctor)
    installation(app, "config")(settings_shown)
    installation(app, "version")(version)


def print_version() -> None:
    """`ztlens 0.1.0`."""
    from ztlens import __version__

    print(f"ztlens {__version__}")


def version(settings: Settings, output: Output = "table") -> None:
    """Print the version."""
    check_output(output, BOTH)
    from ztlens import __version__

    if output == "json":
        show.document({"ztlens": __version__, "python": platform.python_version(), "kernel": platform.release()})
    else:
        print_version()


def settings_shown(settings: Settings, output: Output = "table") -> None:
    """Print every setting and where it came from."""
    check_output(output, BOTH)
    rows = [
        {"name": s.name, "value": _value(settings, s), "origin": settings.origins[s.name], "meaning": s.meaning}
        for s in config.SETTINGS
    ]
    if output == "json":
        show.document(rows)
    else:
        show.table(["name", "value", "origin", "meaning"], (list(row.values()) for row in rows))


def _value(settings: Settings, setting: config.Setting) -> Any:
    from ztlens.nats import masked

    value = settings[setting.name]
    if value is None and setting.owner:
        return _service_default(setting)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    return masked(value) if setting.secret else value


def _service_default(setting: config.Setting) -> Any:
    """Defaults of the services stand in their own settings classes."""
    from collector.settings import CollectorSettings
    from sink.settings import SinkSettings

    owner: Any = CollectorSettings if setting.owner == "collector" else SinkSettings
    return owner.__dataclass_fields__[setting.name].default


def status(settings: Settings, output: Output = "table") -> None:
    """Health, rates and lag of what runs here. Exit status 3 if a part is missing."""
    check_output(output, BOTH)
    info = running.find(settings.run_dir)
    collector, collector_error = _asked(lambda: _collector(settings))
    sink, sink_error = _asked(lambda: _sink(settings))
    web, _ = _asked(lambda: _web(settings))
    state: dict[str, Any] = {
        "instance": settings.instance,
        "node": (collector or {}).get("node", settings.node),
        "up": None if info is None else {
            "pid": info.get("pid"), "seconds": round(time.time() - info["since"]) if "since" in info else None,
        },
        "collector": collector,
        "sink": sink,
        "web": web,
        "healthy": collector_error is None and sink_error is None,
    }  # fmt: skip
    if output == "json":
        show.document(state)
    else:
        for name, value in _status_rows(state):
            print(f"{name:12} {value}")
    error = collector_error or sink_error
    if error is not None:
        show.say(str(explain(error)))
        raise typer.Exit(MISSING)


def _asked(question: Any) -> tuple[Any, Exception | None]:
    try:
        return question(), None
    except Exception as error:
        return None, error


def _collector(settings: Settings) -> dict[str, Any]:
    from ztlens.lookup import collector_request

    return collector_request(settings.run_dir, "status")


def _sink(settings: Settings) -> dict[str, Any]:
    from ztlens.lookup import sink_status

    return sink_status(settings.run_dir)


def _web(settings: Settings) -> str:
    from ztlens.lookup import web_link

    return web_link(settings.run_dir)


def _status_rows(state: dict[str, Any]) -> list[tuple[str, str]]:
    up, collector, sink = state["up"], state["collector"], state["sink"]
    rows = [("up", "no `ztlens up` runs" if up is None else f"process {up['pid']} for {times.ago(up['seconds'] or 0)}")]
    if collector is None:
        rows.append(("collector", "does not answer"))
    else:
        watched = _watched(collector)
        policy = (collector.get("policy") or {}).get("hash", "")
        tolerance = collector.get("outage_tolerance")
        rows += [
            ("collector", f"node {collector.get('node')}, mode {collector.get('mode')}, watching {watched}"),
            ("loader", collector.get("loader") or "of an older version"),
            ("policy", f"revision {collector.get('revision')}, " + (policy[:12] or "none: everything is allowed")),
            *_change_rows(collector),
            *([("tables", _tables(collector["tables"]))] if collector.get("tables") else []),
            ("ring", f"{100 * collector.get('ring_fill', 0):.1f} % of {times.amount(collector.get('ring_bytes', 0))}"
                     f", {collector.get('events_waiting', 0)} events wait"),
            ("rates", ", ".join(f"{name} {rate:g}/s" for name, rate in collector.get("rates", {}).items()) or "-"),
            ("outage", "NATS may be away for ever at this rate" if tolerance is None
             else f"NATS may be away for {times.ago(tolerance)} at this rate"),
            ("nats", _nats(collector.get("nats") or {})),
        ]  # fmt: skip
        rows += [("notice", one_line(notice)) for notice in collector.get("notices", [])]
    if sink is None:
        rows.append(("sink", "does not answer"))
    else:
        database = sink.get("database") or {}
        lag = sum(stream.get("lag") or 0 for stream in (sink.get("streams") or {}).values())
        rows.append(
            ("sink", f"{database.get('path')}, {times.amount(database.get('bytes', 0))}, {lag} messages behind")
        )
        nodes = [f"{name} {node['state']}" for name, node in (sink.get("nodes") or {}).items()]
        rows.append(("nodes", ", ".join(nodes) or "none was heard of"))
        rows += [("notice", one_line(notice)) for notice in sink.get("notices", [])]
    rows.append(("web", state["web"] or "no page"))
    return rows


def _watched(collector: dict[str, Any]) -> str:
    """`eth0 (native+egress, by link), …`."""
    from collector.interfaces import few

    by = {name: f", by {how}" for name, how in collector.get("held_by", {}).items()}
    names = [f"{name} ({how}{by.get(name, '')})" for name, how in collector.get("interfaces", {}).items()]
    return few(names) or "nothing yet"


def _change_rows(collector: dict[str, Any]) -> list[tuple[str, str]]:
    from ztlens.commands.rules import unconfirmed_line

    waits, error = collector.get("unconfirmed"), collector.get("policy_error")
    return [
        *([("unconfirmed", unconfirmed_line(waits))] if waits else []),
        *([("policy file", f"not in force: {one_line(error)}")] if error else []),
    ]


def _tables(tables: dict[str, dict[str, int]]) -> str:
    """`rules 12 of 4,096, …`."""
    return ", ".join(f"{name.replace('_', ' ')} {t['used']:,} of {t['room']:,}" for name, t in tables.items())


def _nats(state: dict[str, Any]) -> str:
    return f"{state.get('url', '?')} " + ("connected" if state.get("connected") else f"away: {state.get('error', '')}")


def doctor(settings: Settings, output: Output = "table") -> None:
    """What this machine lacks, and how to get it. Exit status 3 if something needed is missing."""
    check_output(output, BOTH)
    features = [*_kernel(settings["loader"]), *_machine(settings)]
    lacking = [feature for feature in features if not feature["ok"]]
    if output == "json":
        show.document({"ok": not lacking, "features": features})
    else:
        colour = show.coloured()
        for feature in features:
            mark = show.paint("ok ", show.GREEN, on=colour) if feature["ok"] else show.paint("no ", show.RED, on=colour)
            print(f"{mark} {feature['name']:22} {feature['detail']}")
            if not feature["ok"] and feature["hint"]:
                print(f"{'':26}{feature['hint']}")
    if lacking:
        names = ", ".join(feature["name"] for feature in lacking)
        show.say(str(explain(Missing(f"this machine lacks: {names}", lacking[0]["hint"] or "see above"))))
        raise typer.Exit(MISSING)


def _kernel(loader: str) -> list[dict[str, Any]]:
    try:
        from collector.kernel.features import probe

        return [_feature(f.name, f.ok, f.detail, f.hint) for f in probe(loader)]
    except Exception as error:
        told = explain(error)
        return [_feature("kernel", False, one_line(told.message), told.hint)]


def _feature(name: str, ok: bool, detail: str, hint: str = "") -> dict[str, Any]:
    return {"name": name, "ok": bool(ok), "detail": detail, "hint": "" if ok else hint}


def _machine(settings: Settings) -> list[dict[str, Any]]:
    from ztlens import nats

    found = [_feature("python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or newer")]
    try:
        program = nats.find_program(settings["nats_server"])
        number = ".".join(map(str, nats.version(program) or ()))
        found.append(_feature("nats-server", True, f"{number} at {program}"))
    except Exception as error:
        found.append(_feature("nats-server", False, str(error), explain(error).hint))
    for package in ("duckdb", "nats-py", "pyarrow", "numpy"):
        found.append(_package(package))
    if settings["nats_port"]:
        found.append(_port(settings))
    found.append(_disk("state directory", settings.state))
    return found + _decides(settings)


def _decides(settings: Settings) -> list[dict[str, Any]]:
    """What decides here, and how full it makes the kernel's tables: of the running collector, else of the file."""
    collector, _ = _asked(lambda: _collector(settings))
    if collector is None:
        return [_policy_file(settings)] if settings["policy"] else []
    found = [_feature("mode", True, f"{collector['mode']}, revision {collector['revision']}")]
    found.append(_feature("attached", True, _watched(collector)))
    for name, text in _change_rows(collector):
        found.append(_feature(name, name != "policy file", text, "correct the file: it is read again by itself"))
    if collector.get("tables"):
        found.append(_feature("tables", True, _tables(collector["tables"])))
    return found


def _policy_file(settings: Settings) -> dict[str, Any]:
    from policy.compile import room
    from policy.source import compile_text, read_text

    file = Path(settings["policy"])
    try:
        compiled = compile_text(read_text(file), str(file), knobs=settings["knobs"])
    except Exception as error:
        told = explain(error)
        return _feature("policy file", False, one_line(told.message), told.hint)
    sizes, places = compiled.sizes(), room(settings["knobs"])
    used = _tables({name: {"used": sizes[name], "room": places[name]} for name in places})
    return _feature("policy file", True, f"{file}: {used}")


def _package(name: str) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return _feature(name, True, installed(name))
    except PackageNotFoundError:
        return _feature(name, False, "not installed", "run scripts/setup.sh")


def _port(settings: Settings) -> dict[str, Any]:
    from ztlens import nats

    port = settings["nats_port"]
    if running.find(settings.run_dir) is not None:
        return _feature("nats port", True, f"{port}, this installation's")
    try:
        nats.refuse_taken(port)
    except Missing as error:
        return _feature("nats port", False, str(error), error.hint)
    return _feature("nats port", True, f"{port} is free")


def _disk(name: str, path: Path) -> dict[str, Any]:
    there = path
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    return _feature(name, free >= DISK_LOW, f"{path}, {times.amount(free)} free", "free some room, or --state DIR")
