"""Metrics as Prometheus reads them: HTTP in threads of its own, families made from the catalogue at each scrape."""

import importlib.metadata
import threading
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from schemas.metrics import BY_NAME


def histogram(name: str) -> Histogram:
    """A histogram of the catalogue, to be observed in any thread; give it to `Endpoint`."""
    metric = BY_NAME[name]
    return Histogram(metric.name, metric.meaning, metric.labels, registry=None, buckets=metric.buckets)


class Page:
    """What one scrape finds. A name that the catalogue does not have, or other labels, is a KeyError or ValueError."""

    def __init__(self) -> None:
        self.families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}

    def put(self, name: str, value: float, *labels: str) -> None:
        """One sample."""
        family = self.families.get(name)
        if family is None:
            metric = BY_NAME[name]
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = self.families[name] = kind(metric.name, metric.meaning, labels=metric.labels)
        family.add_metric(labels, value)


class Endpoint:
    """`fill` puts a scrape's samples on a page; it is called in the thread of the scrape, one scrape at a time."""

    def __init__(self, fill: Callable[[Page], None], *histograms: Histogram) -> None:
        self._fill = fill
        self._one = threading.Lock()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        for one in histograms:
            self._registry.register(one)
        self._server: Any = None

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering asks for names and must not scrape."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus-client for each scrape."""
        page = Page()
        page.put("ztlens_build_info", 1, importlib.metadata.version("ztlens"))
        with self._one:
            self._fill(page)
        yield from page.families.values()

    def listen(self, address: str) -> None:
        """Answer at HOST:PORT. Raises OSError."""
        host, _, port = address.rpartition(":")
        self._server, _ = start_http_server(int(port), host.strip("[]"), self._registry)

    def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
