"""A bundle for an auditor: an export, the documents people read, and the hash of every file; and its offline check.

    SHA256SUMS               hash and name of every other file, as `sha256sum -c` reads it
    evidence.json            what it is: span, host, versions, counts
    ledger.json              the ledger of the exported history
    changes.json             who changed policy and mode, and when
    policies/…/revision-N.yaml   the text of every revision
    manifest.json, verdicts/…, policy/…, loss/…   the exported history itself (`sink.history.manifest`)

The hash of SHA256SUMS stands for all of it: written down elsewhere when the bundle is made, it shows later that nothing
was replaced. Without it the check shows that the bundle is in itself consistent and complete.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from sink.client import History
from sink.errors import ExportError, SinkError
from sink.history import manifest as manifests
from sink.history.export import Source, export
from sink.history.ledger import rfc3339

SUMS = "SHA256SUMS"
FORMAT = 1
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)")
_REVISIONS = (
    "SELECT node, ring, revision, hash, yaml FROM policy_revisions WHERE yaml <> '' ORDER BY node, ring, revision"
)
_CHANGES = """SELECT epoch_ns(time) AS time, node, ring, kind, who, from_revision, to_revision, from_mode, to_mode,
    from_hash, to_hash, state, error FROM changes ORDER BY time, node, ring"""


@dataclass
class Checked:
    """`sha256` of SHA256SUMS; `problems`: file and what is wrong with it."""

    sha256: str = ""
    files: int = 0
    verdicts: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)


def make(
    source: Source,
    directory: Path,
    since: int | None = None,
    until: int | None = None,
    *,
    said: Callable[[str], None] = lambda line: None,
) -> str:
    """Write the bundle of a span (ns since 1970 UTC); the hash to write down. Raises SinkError, OSError."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ExportError(f"{directory} is not empty", "evidence is made once, in a directory of its own")
    done = export(source, directory, since, until, said=said)
    said("hashes of all files")
    with History.on_export(directory) as history:
        for name, content in _documents(history, done.manifest):
            path = directory / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            manifests.replace(path, content)
    lines = [f"{manifests.sha256(directory / name)}  {name}\n" for name in sorted(_files(directory))]
    text = "".join(lines).encode()
    manifests.replace(directory / SUMS, text)
    return hashlib.sha256(text).hexdigest()


def _documents(history: History, manifest: manifests.Manifest) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file that is not part of the export. The same for the same export."""
    yield "ledger.json", _json(history.ledger())
    changes = history.sql(_CHANGES).to_pylist()
    yield "changes.json", _json([change | {"time": rfc3339(change["time"])} for change in changes])
    for row in history.sql(_REVISIONS).to_pylist():
        yield (
            f"policies/{_plain(row['node'])}/{_plain(row['ring'])}/revision-{row['revision']}.yaml",
            row["yaml"].encode(),
        )
    counts = {table: sum(file.rows for file in manifest.of_table(table)) for table in manifest.tables()}
    yield "evidence.json", _json({
        "format": FORMAT, "made": manifest.made, "host": manifest.host, "nodes": manifest.nodes,
        "since": rfc3339(manifest.since), "until": rfc3339(manifest.until),
        "versions": {"ztlens": manifest.ztlens, "duckdb": manifest.duckdb, "pyarrow": manifest.pyarrow,
                     "tables": manifest.tables_version},
        "rows": counts,
    })  # fmt: skip


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


def _plain(name: str) -> str:
    """A name of a node or ring as the name of a directory."""
    return re.sub(r"[^A-Za-z0-9_-]|^\.+", lambda found: f"%{found[0].encode().hex()}", name) or "%"


def _files(directory: Path) -> set[str]:
    """Names of all files below, but for SHA256SUMS."""
    found = (path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return {str(path.relative_to(directory)) for path in found} - {SUMS}


def check(directory: Path, expected: str = "", said: Callable[[str], None] = lambda line: None) -> Checked:
    """Everything that can be known without anything else; `expected`: the hash that was written down.

    Raises ExportError when there is no bundle to check.
    """
    try:
        text = (directory / SUMS).read_bytes()
    except OSError as error:
        raise ExportError(
            f"{directory} holds no evidence: {SUMS}: {error.strerror}", "name what `ztlens export --evidence` wrote"
        ) from error
    out = Checked(hashlib.sha256(text).hexdigest())
    if expected and expected.lower() != out.sha256:
        out.problems.append((SUMS, f"its hash is not the expected {expected}"))
    _check_hashes(directory, text, out, said)
    if not out.problems:
        said("counts, ledger and policies")
        _check_contents(directory, out)
    return out


def _check_hashes(directory: Path, text: bytes, out: Checked, said: Callable[[str], None]) -> None:
    named: dict[str, str] = {}
    for number, line in enumerate(text.decode(errors="replace").split("\n")[:-1], 1):
        found = _LINE.fullmatch(line)
        if found is None or found[2] in named:
            out.problems.append((SUMS, f"line {number} is not a hash and a name"))
        else:
            named[found[2]] = found[1]
    if not text.endswith(b"\n"):
        out.problems.append((SUMS, "its last line is not complete"))
    there = _files(directory)
    for name in sorted(there | set(named)):
        if name not in named:
            out.problems.append((name, "was added"))
        elif name not in there:
            out.problems.append((name, "is missing"))
        elif (directory / name).is_symlink():
            out.problems.append((name, "is a link, not a file"))
        else:
            said(name)
            try:
                digest = manifests.sha256(directory / name)
            except OSError as error:
                digest = ""
                out.problems.append((name, str(error.strerror)))
            if digest and digest != named[name]:
                out.problems.append((name, "was changed"))
    out.files = len(named)


def _check_contents(directory: Path, out: Checked) -> None:
    """Of a bundle whose hashes are right: what the files say of each other."""
    try:
        manifest = manifests.read(directory)
        for file in manifest.files:
            if manifests.sha256(directory / file.path) != file.sha256:
                out.problems.append((file.path, f"is not the file that {manifests.NAME} names"))
            if pyarrow.parquet.read_metadata(directory / file.path).num_rows != file.rows:
                out.problems.append((file.path, f"has not the {file.rows} rows that {manifests.NAME} says"))
        with History.on_export(directory) as history:
            _check_history(directory, history, manifest, out)
    except (SinkError, pa.ArrowException, OSError) as error:
        out.problems.append((manifests.NAME, str(error)))


def _says(kept: bytes, made: bytes, name: str) -> bool:
    """Whether a document is what is made of the history today, but for what later versions add to it."""
    if not name.endswith(".json"):
        return kept == made
    try:
        return _within(json.loads(kept), json.loads(made))
    except ValueError:
        return False


def _within(kept: Any, made: Any) -> bool:
    if isinstance(kept, dict) and isinstance(made, dict):
        return all(key in made and _within(value, made[key]) for key, value in kept.items())
    if isinstance(kept, list) and isinstance(made, list):
        return len(kept) == len(made) and all(map(_within, kept, made))
    return bool(kept == made)


def _check_history(directory: Path, history: History, manifest: manifests.Manifest, out: Checked) -> None:
    documents = dict(_documents(history, manifest))
    for name, content in documents.items():
        path = directory / name
        if not path.is_file() or not _says(path.read_bytes(), content, name):
            out.problems.append((name, "is not what the exported history says"))
    named = set(documents) | {file.path for file in manifest.files} | {manifests.NAME}
    out.problems += [(name, "belongs to no export") for name in sorted(_files(directory) - named)]
    if not history.ledger()["balanced"]:
        out.problems.append(("ledger.json", "does not balance"))
    for row in history.sql(_REVISIONS).to_pylist():
        if hashlib.sha256(row["yaml"].encode()).hexdigest() != row["hash"]:
            name = f"policies/{_plain(row['node'])}/{_plain(row['ring'])}/revision-{row['revision']}.yaml"
            out.problems.append((name, f"is not the text of the hash {row['hash']} in the record of the change"))
    for table in manifest.tables():
        rows = history.sql(f"SELECT count(*) AS n FROM store.{table}")["n"][0].as_py()
        if rows != sum(file.rows for file in manifest.of_table(table)):
            out.problems.append((table, f"shows {rows} rows, not those that {manifests.NAME} says"))
    out.verdicts = history.sql("SELECT count(*) AS n FROM store.verdicts")["n"][0].as_py()
    strange = history.sql(
        "SELECT count(*) AS n FROM store.verdicts AS v WHERE NOT EXISTS (FROM store.ranges AS r"
        " WHERE r.ring = v.ring AND v.position >= r.first AND v.position < r.past)"
    )["n"][0].as_py()
    if strange:
        out.problems.append(("verdicts", f"has {strange} verdicts that were never stored, by `ranges`"))
