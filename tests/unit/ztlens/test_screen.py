"""Stdout that never holds up who writes to it."""

import os

from tests.support.until import until
from ztlens import screen
from ztlens.screen import Screen


async def test_what_nobody_reads_is_left_out_and_said() -> None:
    reader, writer = os.pipe()
    one = Screen(writer)
    for _ in range(screen.WAITING + 200):  # each as large as the pipe: the first write blocks
        one.write("x" * (1 << 20))
    assert one.left_out >= 199
    for _ in range(2):
        assert os.read(reader, 1 << 16)  # it still works where it was
    os.close(reader)  # and its thread ends, for nobody reads
    await until(lambda: one._gone, "the end of the thread")
    one.write("more")
    os.close(writer)


async def test_what_is_read_is_whole() -> None:
    reader, writer = os.pipe()
    one = Screen(writer)
    texts = [f"line {i}\n" for i in range(100)]
    for text in texts:
        one.write(text)
    got = b""
    while len(got) < len("".join(texts)):
        got += os.read(reader, 1 << 16)
    assert got.decode() == "".join(texts) and one.left_out == 0
