"""Files are the old one or the new one, whole, whatever happens in between."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fromfew.errors import FromfewError
from fromfew.io import files
from fromfew.io.files import lock, read_regular, recover_folder, replace_folder, replacing, write_atomic


def contents(folder: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in sorted(folder.iterdir()) if item.is_file()}


def test_a_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path):
    target = tmp_path / "new folder" / "a.txt"
    write_atomic(target, "one")
    write_atomic(target, b"two")
    assert contents(target.parent) == {"a.txt": b"two"}


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    write_atomic(tmp_path / "a", "old")

    def spoil() -> None:
        with replacing(tmp_path / "a") as fresh:
            fresh.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        spoil()
    assert contents(tmp_path) == {"a": b"old"}


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path, monkeypatch):
    write_atomic(tmp_path / "a", "old")

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(FromfewError, match="The disk is full"):
        write_atomic(tmp_path / "a", "new")
    assert contents(tmp_path) == {"a": b"old"}


def test_a_full_disk_leaves_the_old_folder(tmp_path, monkeypatch):
    with replace_folder(tmp_path / "c") as new:
        (new / "x").write_text("old")
    monkeypatch.setattr(files.os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))

    def again() -> None:
        with replace_folder(tmp_path / "c") as new:
            (new / "x").write_text("new")

    with pytest.raises(FromfewError, match="The disk is full"):
        again()
    assert contents(tmp_path / "c") == {"x": b"old"}
    assert [item.name for item in tmp_path.iterdir()] == ["c"]


def test_a_replaced_folder_keeps_files_that_were_not_written_anew(tmp_path):
    with replace_folder(tmp_path / "c") as new:
        (new / "x").write_text("1")
        (new / "y").write_text("1")
    with replace_folder(tmp_path / "c") as new:
        (new / "x").write_text("2")
    assert contents(tmp_path / "c") == {"x": b"2", "y": b"1"}
    with replace_folder(tmp_path / "c", keep=False) as new:
        (new / "x").write_text("3")
    assert contents(tmp_path / "c") == {"x": b"3"}


def test_without_an_atomic_exchange_a_swap_cut_short_is_put_right(tmp_path, monkeypatch):
    with replace_folder(tmp_path / "c") as new:
        (new / "x").write_text("old")
    (tmp_path / "c").rename(tmp_path / ".c.old")  # the moment between the two renames
    recover_folder(tmp_path / "c")
    assert contents(tmp_path / "c") == {"x": b"old"}
    monkeypatch.setattr(files, "_exchange", lambda new, old: False)
    with replace_folder(tmp_path / "c") as new:
        (new / "x").write_text("new")
    assert contents(tmp_path / "c") == {"x": b"new"}
    assert [item.name for item in tmp_path.iterdir()] == ["c"]


KILLED = """
import os, signal, sys
from pathlib import Path
from fromfew.io import files
kill_at, count = int(sys.argv[1]), 0
def audit(event, args):
    global count
    if event == "open" or event.startswith(("os.", "ctypes.", "shutil.")):
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
folder = Path(sys.argv[2])
sys.addaudithook(audit)
with files.replace_folder(folder) as new:
    (new / "one").write_text("new")
    (new / "two").write_text("new")
print("done")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts Linux calls")
def test_a_save_killed_between_any_two_calls_leaves_one_whole_state(tmp_path):
    states = set()
    for kill_at in range(1, 60):
        folder = tmp_path / str(kill_at) / "c"
        with replace_folder(folder) as new:
            (new / "one").write_text("old")
            (new / "two").write_text("old")
        code = [sys.executable, "-S", "-c", KILLED, str(kill_at), str(folder)]
        env = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[2])}
        done = subprocess.run(code, capture_output=True, text=True, env=env, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        found = contents(folder)
        assert found in ({"one": b"old", "two": b"old"}, {"one": b"new", "two": b"new"})
        states.add(found["one"])
        with replace_folder(folder) as new:
            (new / "one").write_text("last")
        assert [item.name for item in folder.parent.iterdir()] == ["c"], "what the killed one left is swept away"
        if done.returncode == 0:
            break
    assert states == {b"old", b"new"}


def test_two_writers_of_one_folder_never_meet(tmp_path):
    target = tmp_path / "c"
    code = f"""
import sys, time
from fromfew.io.files import lock
with lock({str(target)!r}):
    print("held", flush=True); sys.stdin.readline()
"""
    env = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[2])}
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(FromfewError, match=rf"is being written by another fromfew \(process {other.pid}\)"):
        lock(target).__enter__()
    other.kill()  # the system drops the lock of a process that dies
    other.wait()
    with lock(target):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_is_refused_at_once_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FromfewError, match="is a named pipe, not a file"):
        read_regular(tmp_path / "pipe", 100)
