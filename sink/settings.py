"""What a sink is started with."""

from dataclasses import dataclass
from pathlib import Path

from sink.errors import SettingsError


@dataclass(frozen=True)
class SinkSettings:
    """`keep_age` (verdicts), `keep_minutes` and `keep_hours` (roll-ups) in seconds, `keep_bytes` of the database file;
    0: keep everything. Waits in seconds."""

    database: Path
    nats_url: str
    run_dir: Path
    keep_age: float = 30 * 86400.0
    keep_minutes: float = 90 * 86400.0
    keep_hours: float = 730 * 86400.0
    keep_bytes: int = 0
    archive: Path | None = None  # where verdicts are exported to before they are deleted
    commit_rows: int = 10_000  # a commit waits for so many rows …
    commit_wait: float = 0.25  # … or so long after the commit before
    commit_rows_max: int = 122_880  # and takes no more: DuckDB's row group, written once when a commit fills it exactly
    idle_wait: float = 5.0  # counters of a quiet node wait so long: a commit a second would cost 1-2 % of a core
    fetch: int = 32  # messages asked of the stream ahead
    gap_deadline: float = 30.0  # a hole below the acknowledged position, this old with all read, is a gap
    retention_interval: float = 3600.0
    rollup_interval: float = 30.0
    readers: int = 4  # questions answered at the same time
    query_timeout: float = 30.0
    answer_rows: int = 10_000_000  # of a question that is not read as it comes (export, replay); 0: any number
    audit_timeout: float = 300.0
    memory_limit: str = "256MB"  # DuckDB's own; the process needs about 150 MB besides
    process_memory: int = 4 << 30  # bytes the process may allocate, all in all; 0: any number
    threads: int = 0  # DuckDB's; 0: one a CPU, at most 4
    metrics: str = ""  # HOST:PORT for Prometheus; "": nowhere

    def __post_init__(self) -> None:
        """Raises SettingsError."""
        if 0 < self.keep_hours < (self.keep_minutes or float("inf")):
            raise SettingsError(
                "sums by hour (keep_hours) would be deleted before those by minute (keep_minutes)",
                "keep_hours is not shorter than keep_minutes; 0 keeps them for ever",
            )

    @property
    def socket(self) -> Path:
        """The query API's Unix socket."""
        return self.run_dir / "sink.sock"
