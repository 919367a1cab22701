"""Runs the benchmarks one after the other and writes what came out; see tests/bench/__init__.py."""

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

from collector.errors import KernelError
from collector.kernel.loader import AUTO, LOADERS, choose
from tests.bench.figures import Benchmark, Options, Outcome
from tests.bench.machine import machine, machine_line, steal
from tests.bench.table import table

MODULES = ("datapath", "loaders", "policy", "wire", "ring", "store", "disk", "history", "viewers", "replay", "chain",
           "idle")  # fmt: skip
BY_NAME = ("memory",)
"""Run only when they are asked for."""
RESULTS = Path(__file__).parent / "results"


def say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.sh", description="Measures ztlens beside its peers, in one run.")
    parser.add_argument("--quick", action="store_true", help="smaller amounts: to try the benchmarks, not to quote")
    parser.add_argument("--only", default="", help=f"comma-separated, of: {', '.join((*MODULES, *BY_NAME))}")
    parser.add_argument("--runs", type=int, default=3, help="median over so many (default 3)")
    parser.add_argument("--loader", choices=(AUTO, *LOADERS), default=AUTO, help="of the kernel side (default auto)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep made-up histories there, and use those kept")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long `memory` is watched (default 120)")
    parser.add_argument("--events", type=int, default=10_000, help="a second, of `memory` (default 10000)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.add_argument("--save", type=Path, help="write the JSON here (default: tests/bench/results/TIME.json)")
    parser.add_argument("--debug", action="store_true", help="tracebacks")
    parsed = parser.parse_args()
    parsed.only = [name for name in parsed.only.split(",") if name] or list(MODULES)
    unknown = set(parsed.only) - {*MODULES, *BY_NAME}
    few = [f"--{name}" for name in ("runs", "seconds", "events") if not 1 <= getattr(parsed, name) <= 1e6]
    if unknown or few:
        what = f"there is no benchmark {', '.join(sorted(unknown))}" if unknown else f"{few[0]} is 1 to 1000000"
        print(f"error: {what}\nhint: those there are: {', '.join((*MODULES, *BY_NAME))}", file=sys.stderr)
        raise SystemExit(2)
    return parsed


def run(name: str, options: Options, debug: bool) -> Outcome:
    """All runs of one benchmark; what goes wrong is its `failure`, and the others go on."""
    kind: type[Benchmark] = importlib.import_module(f"tests.bench.{name}").Bench
    outcome = Outcome(kind.NAME, kind.WHAT, kind.FIGURES)
    begun = time.monotonic()
    try:
        with kind(options) as bench:
            outcome.notes = bench.notes
            for i in range(options.runs):
                say(f"{name}: run {i + 1} of {options.runs}")
                outcome.runs.append(bench.measure())
    except (Exception, SystemExit) as error:
        if debug:
            traceback.print_exc()
        outcome.failure = " ".join(f"{type(error).__name__}: {error}".split())
        say(f"{name}: {outcome.failure}")
    outcome.seconds = time.monotonic() - begun
    return outcome


def main() -> int:
    """0: all targets met; 1: one missed or not measured; 2: usage; 3: no root, no loader."""
    given = arguments()
    if os.geteuid() != 0:
        print("error: the benchmarks load programs into the kernel\nhint: run them with sudo", file=sys.stderr)
        return 3
    try:
        loader = choose(given.loader)
    except KernelError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_status
    facts = machine()
    say(machine_line(facts))
    say(f"loader {loader.name}: {loader.why}")
    stolen, total = steal()
    if facts["load"] > facts["cores"] / 4:
        say(f"load {facts['load']}: somebody else is busy here; figures will be too low, ratios less so")
    options = Options(given.runs, given.quick, loader.name, given.keep, given.seconds, given.events)
    with tempfile.TemporaryDirectory(prefix="ztlens-bench-") as scratch:
        os.environ.setdefault("ZTLENS_BYTECODE_CACHE", scratch)  # each program is compiled once
        outcomes = [run(name, options, given.debug) for name in given.only]
    now_stolen, now_total = steal()
    facts["load_after"] = machine()["load"]
    facts["stolen_percent"] = round(100 * (now_stolen - stolen) / max(1, now_total - total), 2)
    document = {
        "machine": facts, "runs": given.runs, "quick": given.quick, "loader": loader.name,
        "benchmarks": [outcome.document() for outcome in outcomes],
    }  # fmt: skip
    text = json.dumps(document, indent=2, ensure_ascii=False)
    file = given.save or RESULTS / f"{time.strftime('%Y%m%dT%H%M%S')}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")
    say(f"written to {file}")
    if given.output == "json":
        print(text)
    else:
        quick = " (--quick: not to be quoted)" if given.quick else ""
        about = f"{machine_line(facts)}; {facts['stolen_percent']} % stolen; loader {loader.name}{quick}"
        print(f"{about}\n\n{table(outcomes)}")
    return int(any(outcome.below for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
