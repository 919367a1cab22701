"""Evidence: whatever is changed in a bundle, added to it or taken out of it is named."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.verdict import STRIDE
from sink import evidence
from sink.client import History
from sink.errors import ExportError
from sink.history import manifest as manifests
from sink.store import Commit, memory_store, prepare, rollup
from tests.support import batches

N = 600
YAML = "version: 1\ndefault: deny\n"
HOUR = 3_600_000_000_000
FIRST = (batches.CLOCK + batches.START) // HOUR * HOUR


@pytest.fixture(scope="module")
def history() -> History:
    store = memory_store()
    traffic = batches.traffic(N, seconds=7_500.0)
    store.append(
        Commit(
            batches=[prepare(batches.batch(traffic.rows))],
            records=[
                batches.policy_record(yaml=YAML, hash=hashlib.sha256(YAML.encode()).hexdigest()),
                batches.policy_record("mode", time=batches.CLOCK + 5, mode="enforce", yaml="", hash=""),
                batches.loss_record(N, packets=traffic.packets, final=True),
            ],
        )
    )
    while rollup.step(store):
        pass
    return History.on_store(store)


@pytest.fixture(scope="module")
def made(history: History, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("made") / "bundle"
    return directory, evidence.make(history, directory)


@pytest.fixture
def bundle(made: tuple[Path, str], tmp_path: Path) -> Path:
    return shutil.copytree(made[0], tmp_path / "bundle")


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_a_whole_bundle(made: tuple[Path, str], history: History) -> None:
    directory, digest = made
    assert digest == hashlib.sha256((directory / "SHA256SUMS").read_bytes()).hexdigest()
    found = evidence.check(directory, digest)
    assert (found.problems, found.sha256, found.verdicts) == ([], digest, N)
    assert found.files == len(files(directory)) - 1
    assert json.loads((directory / "ledger.json").read_text()) == history.ledger()
    assert (directory / "policies/n1/r1/revision-1.yaml").read_text() == YAML
    assert [change["kind"] for change in json.loads((directory / "changes.json").read_text())] == ["revision", "mode"]
    told = json.loads((directory / "evidence.json").read_text())
    assert (told["nodes"], told["since"], told["until"]) == (["n1"], None, None)
    assert told["rows"]["verdicts"] == N and set(told["versions"]) == {"ztlens", "duckdb", "pyarrow", "tables"}
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=directory, check=True)


def test_a_span(history: History, tmp_path: Path) -> None:
    digest = evidence.make(history, tmp_path / "bundle", FIRST + HOUR, FIRST + 2 * HOUR)
    found = evidence.check(tmp_path / "bundle", digest)
    asked = f"time >= make_timestamp_ns({FIRST + HOUR}) AND time < make_timestamp_ns({FIRST + 2 * HOUR})"
    wanted = history.sql(f"SELECT count(*) AS n FROM verdicts WHERE {asked}")["n"][0].as_py()
    assert (found.problems, found.verdicts) == ([], wanted)
    assert 0 < wanted < N
    assert (tmp_path / "bundle/policies/n1/r1/revision-1.yaml").read_text() == YAML


def test_a_byte_flipped_in_each_file(bundle: Path) -> None:
    for name in files(bundle):
        path = bundle / name
        content = path.read_bytes()
        for at in {0, len(content) // 2, len(content) - 1}:
            path.write_bytes(content[:at] + bytes([content[at] ^ 0x20]) + content[at + 1 :])
            found = evidence.check(bundle)
            assert found.problems, (name, at)
            if name != evidence.SUMS:
                assert found.problems == [(name, "was changed")], (name, at)
        path.write_bytes(content)
    assert not evidence.check(bundle).problems


def test_one_missing_and_one_added(bundle: Path) -> None:
    for name in set(files(bundle)) - {evidence.SUMS}:
        content = (bundle / name).read_bytes()
        (bundle / name).unlink()
        assert evidence.check(bundle).problems == [(name, "is missing")]
        (bundle / name).write_bytes(content)
    for name in ("extra.txt", "verdicts/part-0.parquet", ".hidden"):
        (bundle / name).write_text("x")
        assert evidence.check(bundle).problems == [(name, "was added")]
        (bundle / name).unlink()
    (bundle / "link").symlink_to("/etc/passwd")
    assert evidence.check(bundle).problems == [("link", "was added")]
    (bundle / "link").unlink()
    content = (bundle / "ledger.json").read_bytes()
    (bundle.parent / "elsewhere").write_bytes(content)
    (bundle / "ledger.json").unlink()
    (bundle / "ledger.json").symlink_to(bundle.parent / "elsewhere")
    assert evidence.check(bundle).problems == [("ledger.json", "is a link, not a file")]


def forge(bundle: Path) -> None:
    """Make the hashes right again, as whoever changes files may."""
    names = [name for name in files(bundle) if name != evidence.SUMS]
    (bundle / evidence.SUMS).write_text("".join(f"{manifests.sha256(bundle / name)}  {name}\n" for name in names))


def test_forged_hashes(bundle: Path, made: tuple[Path, str]) -> None:
    """The hash written down shows any forgery; without it what the files say of each other still has to agree."""
    document = bundle / "ledger.json"
    document.write_text(document.read_text().replace('"parsed": ', '"parsed": 1'))
    forge(bundle)
    assert evidence.check(bundle, made[1]).problems == [("SHA256SUMS", f"its hash is not the expected {made[1]}")]
    assert evidence.check(bundle).problems == [("ledger.json", "is not what the exported history says")]
    shutil.copy(made[0] / "ledger.json", document)
    (bundle / "policies/n1/r1/revision-1.yaml").write_text("version: 1\ndefault: allow\n")
    forge(bundle)
    assert [name for name, _ in evidence.check(bundle).problems] == ["policies/n1/r1/revision-1.yaml"]
    shutil.copy(made[0] / "policies/n1/r1/revision-1.yaml", bundle / "policies/n1/r1/revision-1.yaml")
    (bundle / "letter.txt").write_text("x")
    forge(bundle)
    assert evidence.check(bundle).problems == [("letter.txt", "belongs to no export")]


def test_forged_history(bundle: Path) -> None:
    known = manifests.read(bundle)
    verdicts, policy = known.of_table("verdicts")[0], known.of_table("policy")[0]
    rows = pq.read_table(bundle / verdicts.path)
    pq.write_table(rows.slice(1), bundle / verdicts.path)
    forge(bundle)
    assert "manifest.json" in {name for name, _ in evidence.check(bundle).problems}

    def renamed() -> None:
        manifest = json.loads((bundle / "manifest.json").read_text())
        for file in manifest["files"]:
            file["bytes"], file["sha256"] = (
                (bundle / file["path"]).stat().st_size,
                manifests.sha256(bundle / file["path"]),
            )
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        forge(bundle)

    renamed()
    assert (verdicts.path, f"has not the {verdicts.rows} rows that manifest.json says") in evidence.check(
        bundle
    ).problems
    beyond = pa.array(rows["number"].to_numpy() + np.uint64(1_000_000))
    pq.write_table(rows.set_column(rows.column_names.index("number"), "number", beyond), bundle / verdicts.path)
    renamed()
    assert ("verdicts", f"has {rows.num_rows} verdicts that were never stored, by `ranges`") in evidence.check(
        bundle
    ).problems
    pq.write_table(rows, bundle / verdicts.path)
    records = pq.read_table(bundle / policy.path)
    texts = [text and text.replace("deny", "allow") for text in records["yaml"].to_pylist()]
    pq.write_table(records.set_column(records.column_names.index("yaml"), "yaml", [texts]), bundle / policy.path)
    (bundle / "policies/n1/r1/revision-1.yaml").write_text(YAML.replace("deny", "allow"))
    renamed()
    digest = hashlib.sha256(YAML.encode()).hexdigest()
    assert evidence.check(bundle).problems == [
        ("policies/n1/r1/revision-1.yaml", f"is not the text of the hash {digest} in the record of the change")
    ]


def test_refusals(history: History, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="holds no evidence"):
        evidence.check(tmp_path)
    (tmp_path / "letter.txt").write_text("x")
    with pytest.raises(ExportError, match="is not empty"):
        evidence.make(history, tmp_path)
    with pytest.raises(ExportError, match="is not empty"):
        evidence.make(history, tmp_path / "letter.txt")


def test_a_ledger_that_does_not_balance(tmp_path: Path) -> None:
    store = memory_store()
    rows = batches.traffic(30).rows
    store.append(Commit(batches=[prepare(batches.batch(rows[3:], 3 * STRIDE))], records=[
        batches.loss_record(30, packets=5, final=True)]))  # fmt: skip
    evidence.make(History.on_store(store), tmp_path / "bundle")
    assert evidence.check(tmp_path / "bundle").problems == [("ledger.json", "does not balance")]
