"""Processes that run jobs: what they say of what went wrong, and that none outlives the one that started them."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from light_jobs import Job
from refusals import assert_refused

from bayesws.trials import run
from bayesws.trials.pool import WORKER, in_processes


def ended(pid):
    """Whether a process is gone, or nobody has looked at its end yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_a_killed_process_is_told_and_not_waited_for(tmp_path):
    jobs = [Job("is_killed_once", str(tmp_path / "once"))]
    with pytest.raises(ValueError, match=r"ended from outside \(exit status -9\), as happens when memory runs out"):
        list(in_processes(jobs, 1))
    assert list(in_processes(jobs, 1)) == [(0, "done")]


def test_an_error_ends_the_other_processes_and_says_where_it_was(tmp_path):
    with pytest.raises(ValueError, match="on purpose") as error:
        list(in_processes([Job("prints"), Job("fails"), Job("sleeps", str(tmp_path / "pid"))], 1))
    assert str(error.value) == "on purpose" and "in fails" in error.value.__notes__[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_process_outlives_its_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path += {sys.path}\nfrom light_jobs import Job\nif __name__ == '__main__':\n"
        "    from bayesws.trials.pool import in_processes\n"
        f"    list(in_processes([Job('sleeps', {str(tmp_path / 'pid')!r})], 1))\n"
    )
    with subprocess.Popen([sys.executable, str(script)]) as parent:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert parent.poll() is None
            time.sleep(0.05)
        parent.kill()
    pid, until = int((tmp_path / "pid").read_text()), time.monotonic() + 2
    while not ended(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert ended(pid)


def test_a_script_that_starts_trials_when_it_is_imported_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(WORKER), raising=False)
    assert_refused(lambda: run([], tmp_path), "import this script first: start trials below if __name__ == '__main__'")
