"""Hostile policy files through the node: refused ones change nothing at all."""

from pathlib import Path

import pytest

from collector.errors import RefusedError
from schemas.codes import Mode
from tests.support.fake_datapath import FakeDatapath, FakeKernel
from tests.support.half_applied import Followed, follow
from tests.support.hostile_policies import hostile

FILES = 250


async def test_nothing_is_half_applied(tmp_path: Path) -> None:
    kernel = FakeKernel()
    kernel.epoch = (0, Mode.ENFORCE)
    followed = Followed(FakeDatapath(kernel), tmp_path, lambda: list(map(id, kernel.applied)))  # type: ignore[arg-type]
    counts = await follow(followed, (hostile(5, index) for index in range(FILES)))
    assert counts["refused"] > FILES // 2
    assert counts["taken"] > FILES // 10
    assert kernel.mode == Mode.ENFORCE
    assert len(kernel.applied) == 1 + counts["taken"]
    kernel.close()


async def test_a_text_that_no_file_can_have(tmp_path: Path) -> None:
    kernel = FakeKernel()
    followed = Followed(FakeDatapath(kernel), tmp_path, lambda: list(map(id, kernel.applied)))  # type: ignore[arg-type]
    await followed.begin()
    before = followed.state()
    with pytest.raises(RefusedError, match=r"x\.yaml:1:1: character U\+D800 is not allowed"):
        await followed.node.apply("\ud800", "x.yaml", "somebody")
    assert followed.state() == before
    kernel.close()


async def test_what_the_kernel_refuses_is_not_in_force_either(tmp_path: Path) -> None:
    kernel = FakeKernel()
    followed = Followed(FakeDatapath(kernel), tmp_path, lambda: list(map(id, kernel.applied)))  # type: ignore[arg-type]
    await followed.begin()
    before = followed.state()
    followed.path.write_text("version: 1\nrules:\n" + "".join(f"- {{name: r{n}, action: deny}}\n" for n in range(5000)))
    await followed.file.reload()
    assert followed.file.error == f"{followed.path}: 5000 rules, room for 4096"
    assert followed.state() == before
    kernel.close()
