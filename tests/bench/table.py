"""Results for people."""

from collections.abc import Sequence

from tests.bench.figures import Outcome, number

HEAD = ("figure", "median", "min … max", "unit", "ratio to", "", "target", "")


def table(outcomes: Sequence[Outcome]) -> str:
    """One block a benchmark: what it measures, its figures, its notes."""
    return "\n\n".join(_block(outcome) for outcome in outcomes)


def _block(outcome: Outcome) -> str:
    lines = [f"{outcome.name}: {outcome.what} ({len(outcome.runs)} runs, {outcome.seconds:.0f} s)"]
    rows: list[tuple[str, ...]] = [HEAD]
    for row in outcome.rows():
        rows.append((
            row["figure"], number(row["median"]), f"{number(row['min'])} … {number(row['max'])}", row["unit"],
            row["peer"] or "", "" if row["ratio"] is None else f"{row['ratio']:.2f}", row["target"] or "",
            {True: "pass", False: "BELOW", None: ""}[row["met"]],
        ))  # fmt: skip
    if len(rows) > 1:
        widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
        right = {1, 5}
        for line in rows:
            cells = [
                c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
            ]
            lines.append(("  " + "  ".join(cells)).rstrip())
    lines += [f"  note: {note}" for note in outcome.notes]
    if outcome.failure:
        lines.append(f"  NOT MEASURED: {outcome.failure}")
    return "\n".join(lines)
