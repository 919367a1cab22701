"""Hostile policy files through the node, over the real datapath: not a byte of its tables changes for a refused one."""

from pathlib import Path
from typing import Any

from collector.kernel import DatapathSettings, Interface, open_datapath
from schemas.codes import Mode
from tests.support.half_applied import Followed, follow
from tests.support.hostile_policies import hostile
from tests.support.kernel import KNOBS, instance, quiet_veth
from tests.support.netns import Lab

FILES = 60
TABLES = ("range_nodes", "ranges", "ports", "source_rules", "destination_rules", "port_rules", "rules", "config")


async def test_nothing_is_half_applied(tmp_path: Path) -> None:
    with instance() as pins, Lab() as lab:
        netns, _ = quiet_veth(lab)
        datapath = open_datapath(DatapathSettings(pins, (Interface("veth0"),), netns=netns, knobs=KNOBS))
        handle = datapath.handle  # type: ignore[attr-defined]

        def tables() -> dict[str, Any]:
            return {name: getattr(handle, name).values.tobytes() for name in TABLES}

        try:
            datapath.set_mode(Mode.ENFORCE)
            counts = await follow(Followed(datapath, tmp_path, tables), (hostile(6, index) for index in range(FILES)))
            assert datapath.mode == Mode.ENFORCE
        finally:
            datapath.close()
    assert counts["refused"] > FILES // 2
    assert counts["taken"] > 5
