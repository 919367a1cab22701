"""What either loader gives: ns a packet side by side, from process start to attached, how much is verified."""

import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from collector.kernel import libbpf
from collector.kernel.loader import LOADERS
from collector.kernel.netns import inside, links
from collector.kernel.private import PrivateDatapath, private_datapath
from collector.kernel.sources import PROGRAMS
from schemas.codes import Mode
from tests.bench.datapath import BUDGET, DROP, NS, PASS
from tests.bench.figures import Figure, Options
from tests.bench.peers import Peers
from tests.bench.policies import ALLOWED_PORT, DENIED_PORT, policy
from tests.bench.processes import memory
from tests.bench.testrun import Subject, TestRuns, less
from tests.support.kernel import instance, quiet_veth, udp_frame
from tests.support.netns import Lab
from ztlens.parts import clean_environment, ztlens_command

PACKETS = {"hot": "allowed packet of a known flow", "denied": "denied packet of a known flow",
           "first": "each packet a new flow"}  # fmt: skip
MS, MIB = "ms", "MiB"
PATIENCE = 60.0  # seconds
POLICY = Path(__file__).resolve().parents[2] / "policy.yaml"
STARTS = 5


def _figures() -> list[Figure]:
    out = []
    for name, what in PACKETS.items():
        out.append(Figure(f"{name}, bcc", what, NS))
        out.append(Figure(f"{name}, core", what, NS, peer=f"{name}, bcc", ratio_at_most=1.05))
    for loader in LOADERS:
        out += [Figure(f"{name} verified, {loader}", "instructions the verifier walked", "") for name in PROGRAMS]
    return [
        *out,
        Figure("start, bcc", "process start to attached, the least; compiled anew", MS),
        Figure("start, core", "the same", MS, at_most=300.0),
        Figure("start, core, policy", "the same with policy.yaml, which is read and compiled before", MS),
        Figure("collector RSS, core", "beside the ring, without NATS", MIB, at_most=80.0),
    ]


class Bench:
    """See the module."""

    NAME = "loaders"
    WHAT = "the same packets through what either loader made; a collector's start"
    FIGURES = _figures()

    def __init__(self, options: Options) -> None:
        self.notes: list[str] = []
        self._rounds = 20 if options.quick else 100
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._peers = Peers()
        self._stack.callback(self._peers.close)
        self._both = {name: self._loaded(name) for name in LOADERS}
        self._netns, _ = quiet_veth(self._stack.enter_context(Lab()))
        return self

    def _loaded(self, loader: str) -> PrivateDatapath:
        datapath = self._stack.enter_context(private_datapath(loader=loader, budget=BUDGET))
        datapath.apply(policy(1000), datapath.next_revision)
        datapath.set_mode(Mode.ENFORCE)
        return datapath

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self) -> dict[str, float]:
        out = self._packets()
        for loader, datapath in self._both.items():
            for name, fd in datapath.handle.programs.items():
                out[f"{name} verified, {loader}"] = float(libbpf.program_info(fd).verified)
        out["start, core"], out["collector RSS, core"] = min(self._start("core") for _ in range(STARTS))
        out["start, core, policy"] = min(self._start("core", f'policy = "{POLICY}"\n')[0] for _ in range(STARTS))
        out["start, bcc"], _ = self._start("bcc")
        return out

    def _packets(self) -> dict[str, float]:
        """Both in turns, so that what disturbs one disturbs the other."""
        frames = {
            action: udp_frame("10.1.200.7", 40_000, "10.2.0.1", port, bytes(18))
            for action, port in ((PASS, ALLOWED_PORT), (DROP, DENIED_PORT))
        }
        runs = {name: TestRuns(datapath, self._peers.fds["stir"]) for name, datapath in self._both.items()}
        any_run = next(iter(runs.values()))
        known, first = (
            [],
            [Subject("stir", -1, frames[PASS], PASS, [lambda: self._peers.stir(self._peers.fds["pass"])])],
        )
        for loader, run in runs.items():
            run.empty()
            program = self._both[loader].handle.programs["xdp_ingress"]
            for name, action in (("hot", PASS), ("denied", DROP)):
                known.append(Subject(f"{name}, {loader}", program, frames[action], action, [run.drain]))
            stir = [run.empty, lambda program=program: self._peers.stir(program)]  # type: ignore[misc]
            first.append(Subject(f"first, {loader}", -1, frames[PASS], PASS, stir))
        out = any_run.least(known, self._rounds, 20_000)
        return out | less(any_run.least(first, self._rounds // 3, 5_000), "stir")

    def _start(self, loader: str, more: str = "") -> tuple[float, float]:
        """With `more` settings: (ms from the start of `ztlens collector` until XDP is attached, MiB it then holds)."""
        environment = clean_environment()
        environment.pop("ZTLENS_BYTECODE_CACHE", None)
        with instance() as pins, tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "ztlens.toml"
            settings = f'netns = "{self._netns}"\ninterfaces = ["veth0"]\npins = "{pins}"\nloader = "{loader}"\n'
            file.write_text(settings + more)
            options = ["--nats", "nats://127.0.0.1:1", "--run-dir", scratch, "--state", scratch, "--config", str(file)]
            begun = time.monotonic()
            collector = subprocess.Popen(
                ztlens_command("collector", *options), env=environment,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                passed = inside(self._netns, lambda: self._until_attached(begun))
                time.sleep(1.0)
                return passed, memory(collector.pid).own
            finally:
                collector.terminate()
                collector.wait(PATIENCE)

    @staticmethod
    def _until_attached(begun: float) -> float:
        ifindex = links()["veth0"].ifindex
        while not libbpf.xdp_query(ifindex).any:
            if time.monotonic() > begun + PATIENCE:
                raise TimeoutError("the collector did not attach")
            time.sleep(0.002)
        return 1000 * (time.monotonic() - begun)
