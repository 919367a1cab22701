"""compose.yaml and the Dockerfile name only what exists: no engine runs them here, so every name is checked."""

import asyncio
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest
import typer
import yaml

from tests.support.nats import BINARY, NatsServer
from web.service import address
from web.settings import WebSettings
from ztlens import config
from ztlens.main import app
from ztlens.nats import MAX_PAYLOAD

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
PROVISIONING = ROOT / "deploy/grafana/provisioning"
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
OURS = ("collector", "sink", "web")
MONITORING = ("prometheus", "grafana")


def variables() -> set[str]:
    """Names that compose takes from the caller's environment."""
    text = "".join(line.partition(" #")[0] for line in (ROOT / "compose.yaml").read_text().splitlines(keepends=True))
    return set(re.findall(r"(?<!\$)\$\{(\w+)", text))


def test_services_are_nats_and_ours() -> None:
    assert {name for name, service in SERVICES.items() if "profiles" not in service} == {"nats", *OURS}
    assert {name for name, service in SERVICES.items() if service.get("profiles") == ["monitoring"]} == {*MONITORING}


def test_images_name_no_registry() -> None:
    for name in ("nats", *MONITORING):
        assert re.fullmatch(r"[a-z]+(/[a-z]+)?:v?[0-9][0-9a-z.-]*", SERVICES[name]["image"])


def test_monitoring_is_on_loopback_and_reads_what_is_there() -> None:
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yaml").read_text())
    targets = {
        job["job_name"]: target
        for job in prometheus["scrape_configs"] for one in job["static_configs"] for target in one["targets"]
    }  # fmt: skip
    (published,) = SERVICES["sink"]["ports"]
    host, _, inside = published.rpartition(":")
    assert SERVICES["collector"]["network_mode"] == "host"
    assert targets == {"ztlens-collector": SERVICES["collector"]["environment"]["ZTLENS_METRICS"], "ztlens-sink": host}
    assert SERVICES["sink"]["environment"]["ZTLENS_METRICS"] == f"0.0.0.0:{inside}"
    assert all((ROOT / "deploy/prometheus" / file).exists() for file in prometheus["rule_files"])
    (source,) = yaml.safe_load((PROVISIONING / "datasources/prometheus.yaml").read_text())["datasources"]
    flags = SERVICES["prometheus"]["command"]
    assert f"--web.listen-address={source['url'].removeprefix('http://')}" in flags
    assert source["url"].startswith("http://127.0.0.1:")
    assert SERVICES["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    mounted = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards/ztlens.yaml").read_text())["providers"]
    assert mounted["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert "--config.file=/etc/prometheus/prometheus.yaml" in flags
    assert "./deploy/prometheus:/etc/prometheus:ro" in SERVICES["prometheus"]["volumes"]
    for board in (ROOT / "deploy/grafana/dashboards").glob("*.json"):
        for panel in json.loads(board.read_text())["panels"]:
            assert panel["datasource"]["uid"] == source["uid"], panel["title"]


@pytest.mark.parametrize("name", OURS)
def test_the_command_is_one_of_ztlens(name: str) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert SERVICES[name]["command"] == [name]
    assert name in commands


@pytest.mark.parametrize("name", OURS)
def test_the_environment_is_settings_that_parse(name: str) -> None:
    given = SERVICES[name]["environment"]
    plain = {key: re.sub(r"\$\{\w+(:\?[^}]*)?\}", "eth0", value) for key, value in given.items()}
    assert {key.removeprefix("ZTLENS_").lower() for key in given} <= set(config.BY_NAME)
    settings = config.load({}, plain)
    assert name == "web" or settings.nats.startswith("nats://ztlens:")
    assert name != "collector" or settings["interfaces"] == ("eth0",)


def test_what_the_caller_sets_is_two_variables() -> None:
    assert variables() == {"ZTLENS_NATS_PASSWORD", "ZTLENS_INTERFACES"}


def test_the_page_is_on_loopback_and_asks_the_sink() -> None:
    """As the sink's user, for its socket is for its owner alone; with a volume of its own for the token."""
    web, sink = SERVICES["web"], SERVICES["sink"]
    settings = config.load({}, web["environment"])
    page = WebSettings(
        settings.run_dir / "sink.sock", settings.run_dir, settings.state, settings["web"], settings["web_names"]
    )
    assert web["ports"] == [f"127.0.0.1:{page.port}:{page.port}"]
    assert page.host == "0.0.0.0" and address(page, page.port, "t") == f"http://localhost:{page.port}/?token=t"
    for key in ("user", "cap_drop", "security_opt"):
        assert web[key] == sink[key]
    history, run = ([volume.split(":") for volume in service["volumes"]] for service in (sink, web))
    assert [mount for _, mount in run] == [mount for _, mount in history]
    assert run[1] == history[1] and run[0][0] != history[0][0]


def test_grafana_has_no_password_that_everybody_knows() -> None:
    """Compose starts none without the variable of its secret; `${…:?}` would demand it of who wants no Grafana, too."""
    (name,) = SERVICES["grafana"]["secrets"]
    assert SERVICES["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD__FILE"] == f"/run/secrets/{name}"
    variable = COMPOSE["secrets"][name]["environment"]
    assert variable not in variables()
    for file in ("compose.yaml", "docs/operating.md", "docs/metrics.md"):
        assert variable in (ROOT / file).read_text(), file


def test_mounted_and_copied_files_exist() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith("/") or source in COMPOSE["volumes"] or (ROOT / source).exists(), source
    for name in OURS:
        assert (ROOT / SERVICES[name]["build"]["dockerfile"]).exists()
    copied = [source for line in re.findall(r"^COPY ([^-].*) \S+$", DOCKERFILE, re.M) for source in line.split()]
    for source in copied:
        assert (ROOT / source).exists(), source
    kept = re.findall(r"^!(\S+)$", (ROOT / "deploy/Dockerfile.dockerignore").read_text(), re.M)
    assert sorted(kept) == sorted(copied)


def test_every_package_is_in_the_image_with_the_policy() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    assert packages <= set(re.findall(r"^COPY (\w+) \./\1$", DOCKERFILE, re.M))
    assert project["tool"]["setuptools"]["package-data"]["ztlens.demo"] == ["*.yaml"]
    assert (ROOT / "policy.yaml").resolve() == ROOT / "ztlens/demo/policy.yaml"


def test_defaults_lie_in_the_volumes() -> None:
    settings = config.load({}, {})
    mounts = [volume.split(":")[1] for volume in SERVICES["sink"]["volumes"]]
    assert mounts == [str(settings.state), str(settings.run_dir.parent)]
    assert SERVICES["collector"]["tmpfs"] == [str(settings.run_dir.parent)]


@pytest.mark.parametrize("password", ["12e4", "0123abc", "true", "sp ace"])
async def test_nats_takes_the_config_and_any_password(
    tmp_path: Path, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server itself reads what compose would mount; `$$` is compose's `$`."""
    given = SERVICES["nats"]["environment"]["NATS_PASSWORD"]
    monkeypatch.setenv("NATS_PASSWORD", re.sub(r"\$\{[^}]*\}", password, given))
    text = COMPOSE["configs"]["nats"]["content"].replace("$$", "$").replace("/data", str(tmp_path / "data"))
    file = tmp_path / "ztlens.conf"
    file.write_text(text)
    await asyncio.to_thread(subprocess.run, [BINARY, "-t", "--config", file], check=True, capture_output=True)
    ours = [line for line in text.splitlines() if line.startswith(("authorization", "max_payload"))]
    with NatsServer(tmp_path, "\n".join(ours)) as server:
        client = await nats.connect(server.url, user="ztlens", password=password)
        assert f"{client.max_payload >> 20}MB" == MAX_PAYLOAD
        await client.close()
        with pytest.raises(nats.errors.Error):
            await nats.connect(server.url, user="ztlens", password=f"{password}x", allow_reconnect=False)
