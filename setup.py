"""One step setuptools does not know: the kernel side's object is built before the packages are gathered."""

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BPF = Path(__file__).parent / "bpf"


class BuildWithObject(build_py):
    """`make -C bpf`, which does nothing when the object is newer than its sources."""

    def run(self) -> None:
        try:
            subprocess.run(["make", "--no-print-directory", "-C", str(BPF)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"bpf/core.bpf.o: {error}\nbuilding it takes make, clang, llvm and libbpf-dev") from error
        super().run()


setup(cmdclass={"build_py": BuildWithObject})
