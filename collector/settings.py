"""Everything a collector is told at its start; read once, by ztlens/config.py or a test."""

from dataclasses import dataclass, field
from pathlib import Path

from collector.kernel.interface import DatapathSettings, Interface
from schemas.codes import Mode


@dataclass(frozen=True)
class CollectorSettings:
    """`nats_url` holds the credentials. Sizes are bytes, times seconds unless the name says otherwise."""

    node: str
    interfaces: tuple[Interface, ...]
    instance: str = "default"
    nats_url: str = "nats://127.0.0.1:4222"
    netns: str = ""
    policy_file: Path | None = None
    mode: Mode | None = None  # None: what an adopted datapath has, else monitor
    run_dir: Path = Path("/run/ztlens/default")
    pins: Path = Path("/sys/fs/bpf/ztlens/default")
    loader: str = "auto"  # or core, or bcc: collector.kernel.loader
    knobs: dict[str, int] = field(default_factory=dict)  # override schemas.structs.KNOBS by name
    sample: int = 1000
    budget: int = 250_000
    midstream_seconds: int = 600
    timeouts: dict[str, int] = field(default_factory=dict)  # override schemas.structs.TIMEOUTS
    live_cap: int = 20_000  # verdicts a second on the live subjects; 0: none
    batch: int = 4_000  # verdicts a message, at most
    batch_wait: float = 0.05  # a smaller batch is sent so long after the one before
    in_flight: int = 16  # batches sent and not yet acknowledged
    stream_max_bytes: int | None = (
        None  # of VERDICTS; None: schemas.streams' default, an existing stream stays as it is
    )
    stream_max_age: float | None = None  # of VERDICTS; None: as above
    metrics: str = ""  # HOST:PORT for Prometheus; "": nowhere
    debug: bool = False  # tracebacks in the log

    @property
    def control_socket(self) -> Path:
        return self.run_dir / "control.sock"

    def datapath(self) -> DatapathSettings:
        """The part that the kernel side wants."""
        return DatapathSettings(
            pins=self.pins, interfaces=self.interfaces, netns=self.netns, loader=self.loader, knobs=self.knobs,
            sample=self.sample, budget=self.budget, midstream_seconds=self.midstream_seconds, timeouts=self.timeouts,
        )  # fmt: skip
