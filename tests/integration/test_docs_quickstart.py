"""docs/quickstart.md, step by step, on a real interface in a namespace of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.docs import DOCS, marked
from tests.support.documented import Host, alike
from tests.support.netns import Lab, wait_for
from tests.support.until import PATIENCE

DOCUMENT = DOCS / "quickstart.md"
STEPS = marked(DOCUMENT, "step")
OUT = marked(DOCUMENT, "out")
POLICY = marked(DOCUMENT, "policy")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Lab() as lab:
        host = Host(lab, tmp_path, STEPS)
        try:
            yield host
        finally:
            host.end()


def test_quick_start(host: Host) -> None:
    (host.directory / "my-policy.yaml").write_text(POLICY["my-policy.yaml"].text)
    host.start("up")
    wait_for(lambda: "Ctrl-C ends it" in host.said() or (host.up and host.up.poll() is not None), "`up`")
    assert alike(OUT["up"].text) in alike(host.said(), host)

    for step in ("check", "apply"):
        assert alike(host.run(step), host) == alike(OUT[step].text)

    def shown(step: str) -> None:
        wait_for(lambda: alike(host.run(step), host) == alike(OUT[step].text), step)

    host.run("violate")
    for step in ("observe", "violations", "enforce"):
        shown(step)
    host.run("violate-again")
    for step in ("dropped", "ledger"):
        shown(step)
    host.run("down")
    assert host.up is not None
    assert host.up.wait(timeout=PATIENCE) == 0
    assert alike(host.said(), host).endswith(alike(OUT["down"].text))
    assert not host.pins.exists()


def test_every_step_is_taken() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    for name in (*STEPS, *OUT):
        assert f'"{name}"' in source
