"""Drafts by id, and what an audit's document becomes."""

from typing import Any

from web.draft import KEPT, SHOWN, Change, Drafts, Sums, audited


def entry(source: str, port: int, flows: int, crossing: int = 0) -> dict[str, Any]:
    return {"src_identity": source, "dst_identity": "db", "dport": port, "proto": "tcp", "flows": flows,
            "crossing": crossing, "packets": 10 * flows, "bytes": 100 * flows}  # fmt: skip


def test_an_audit_by_pair_and_port() -> None:
    sums = {"flows": 20, "packets": 200, "bytes": 2000, "crossing": 0}
    done = audited("text", 1, 2, sums | {
        "unchanged": sums | {"flows": 9}, "uncertain": [entry("web", 9, 1)],
        "newly_denied": [entry("web", 22, 3), entry("web", 23, 0, crossing=2), entry("web", 22, 1)],
        "newly_allowed": [entry("web", 23, 4)] + [entry("api", port, 1) for port in range(SHOWN + 5)],
    })  # fmt: skip
    assert done.changes["web", "db", 22, "tcp"] == Change(newly_denied=4)
    assert done.changes["web", "db", 23, "tcp"] == Change(newly_denied=2, newly_allowed=4)
    assert done.pairs() == {("web", "db"): Change(6, 4), ("api", "db"): Change(0, SHOWN + 5)}
    assert (done.unchanged.flows, done.sums["newly_denied"]) == (9, Sums(3, 4, 40, 400))
    assert (len(done.entries["newly_allowed"]), done.sums["newly_allowed"].entries) == (SHOWN, SHOWN + 6)


def test_drafts_are_forgotten_in_the_order_of_their_use() -> None:
    drafts = Drafts()
    names = [drafts.new() for _ in range(KEPT)]
    assert len(set(names)) == KEPT
    assert drafts.get(names[0]) is not None
    drafts.new()
    assert drafts.get(names[0]) is not None and drafts.get(names[1]) is None
    drafts.discard(names[0])
    assert drafts.get(names[0]) is None and drafts.get("") is None
