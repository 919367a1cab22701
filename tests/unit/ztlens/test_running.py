"""Who runs here: the lock tells, whatever the file says."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ztlens import config, running
from ztlens.errors import BadInput, Missing


def settings(tmp_path: Path, **more: str) -> config.Settings:
    return config.load({"run_dir": str(tmp_path / "run"), "instance": "lab", **more}, {}, Path("/dev/null"))


def test_one_up_an_instance(tmp_path: Path) -> None:
    first = running.Lock(settings(tmp_path))
    first.publish({"nats": "nats://u:p@h:1"})
    with pytest.raises(BadInput, match="instance lab is already up"):
        running.Lock(settings(tmp_path))
    info = running.find(tmp_path / "run")
    assert info is not None and info["nats"] == "nats://u:p@h:1"
    assert stat.S_IMODE((tmp_path / "run" / "up.json").stat().st_mode) == 0o600
    first.release()
    assert running.find(tmp_path / "run") is None
    running.Lock(settings(tmp_path)).release()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_stale_file_counts_for_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "up.lock").touch()
    (run / "up.json").write_text(json.dumps({"pid": 1, "nats": "nats://stale"}))
    assert running.find(run) is None
    with pytest.raises(Missing):
        running.nats_url(settings(tmp_path))
    running.Lock(settings(tmp_path)).release()


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"'])
def test_a_damaged_file_is_no_reason_to_fail(tmp_path: Path, text: str) -> None:
    lock = running.Lock(settings(tmp_path))
    (tmp_path / "run" / "up.json").write_text(text)
    assert running.find(tmp_path / "run") == {}
    assert running.stop({}, tmp_path / "run", 0.1) is False
    lock.release()


def test_the_given_nats_wins(tmp_path: Path) -> None:
    lock = running.Lock(settings(tmp_path))
    lock.publish({"nats": "nats://own"})
    assert running.nats_url(settings(tmp_path)) == "nats://own"
    assert running.nats_url(settings(tmp_path, nats="nats://other")) == "nats://other"
    lock.release()


HOLD = """
import signal, sys
from pathlib import Path
from ztlens import config, running
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
lock = running.Lock(config.load({"run_dir": sys.argv[1]}, {}, Path("/dev/null")))
lock.publish({})
print("held", flush=True)
signal.sigwait([signal.SIGTERM])
lock.release()
"""


def test_stop_waits_for_the_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        info = running.find(run)
        assert info is not None and info["pid"] == child.pid
        assert running.stop(info, run, 20) is True
        assert child.wait(20) == 0
    assert running.stop(info, run, 1) is True  # the number is free or somebody else's: left alone


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        child.kill()
        child.wait(20)
    assert (run / "up.json").exists()
    assert running.find(run) is None
