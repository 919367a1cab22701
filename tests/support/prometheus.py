"""Debian's real Prometheus, unpacked by setup.sh, and its promtool."""

import json
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.support.netns import wait_for

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv/prometheus/usr/bin"
ALERTS = ROOT / "deploy/prometheus/alerts.yaml"
DASHBOARDS = ROOT / "deploy/grafana/dashboards"
Sample = tuple[dict[str, str], float]
"""Labels, without __name__, and value."""


def free_ports(count: int = 1) -> list[int]:
    """So many ports of 127.0.0.1 in a row that nobody has."""
    while True:
        held = [socket.socket() for _ in range(count)]
        try:
            held[0].bind(("127.0.0.1", 0))
            first = held[0].getsockname()[1]
            for offset, one in enumerate(held[1:], 1):
                one.bind(("127.0.0.1", first + offset))
        except (OSError, OverflowError):
            continue
        else:
            return list(range(first, first + count))
        finally:
            for one in held:
                one.close()


def promtool(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "promtool"), *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


def scrape(address: str) -> str:
    """The text of an endpoint."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
        return str(answer.read().decode())


class Prometheus:
    """One that asks `targets` (job → address) each second and evaluates the alerts."""

    def __init__(self, directory: Path, targets: Mapping[str, str]) -> None:
        self.directory = directory
        (port,) = free_ports()
        self.address = f"127.0.0.1:{port}"
        self._config = directory / "prometheus.yaml"
        self._config.write_text(yaml.safe_dump({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ALERTS)],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [at]}]} for job, at in targets.items()
            ],
        }))  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with (self.directory / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [BIN / "prometheus", f"--config.file={self._config}", f"--web.listen-address={self.address}",
                 f"--storage.tsdb.path={self.directory / 'tsdb'}"], stdout=log, stderr=log,
            )  # fmt: skip
        wait_for(self._ready, "Prometheus")
        return self

    def _ready(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.log()
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def log(self) -> str:
        return (self.directory / "prometheus.log").read_text()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(30)

    def get(self, path: str, **parameters: str) -> Any:
        """`data` of an answer; anything but success fails the test."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error
        assert found["status"] == "success", found
        return found["data"]

    def ask(self, query: str) -> list[Sample]:
        """The samples of a query, now."""
        return [
            ({name: value for name, value in one["metric"].items() if name != "__name__"}, float(one["value"][1]))
            for one in self.get("query", query=query)["result"]
        ]

    def value(self, query: str) -> float | None:
        """The one value; None: there is none."""
        found = self.ask(query)
        assert len(found) <= 1, (query, found)
        return found[0][1] if found else None

    def by(self, query: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Values by some of their labels."""
        return {tuple(of.get(name, "") for name in labels): value for of, value in self.ask(query)}

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        return {one["labels"]["alertname"] for one in self.get("alerts")["alerts"] if one["state"] == "firing"}


def panels() -> list[tuple[str, str]]:
    """Dashboard and panel, and a query of it with the variables as Grafana fills them in for everything."""
    found: list[tuple[str, str]] = []
    for file in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                query = target["expr"].replace("$__rate_interval", "10s")
                for variable in ("$instance", "$node"):
                    query = query.replace(variable, ".*")
                found.append((f"{file.stem}: {panel['title']}", query))
    return found


def alerts() -> dict[str, str]:
    """Name → expression."""
    groups: Sequence[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}
