import subprocess
import sys

from reslab.runtime.watchdog import Watchdog, watching

STALL = """
import time
from reslab.runtime import watchdog
watchdog.PATIENCE = 1.0
with watchdog.watching(2.0) as dog:
    for _ in range(5):
        time.sleep(0.1)
        dog.feed(0.005)
    print("fed", flush=True)
    time.sleep(90)  # the line that stalls
"""


def test_a_stalled_process_ends_with_its_stack():
    done = subprocess.run(
        [sys.executable, "-c", STALL],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "fed\n")
    assert "Timeout" in done.stderr
    assert 'File "<string>", line 10' in done.stderr


def test_zero_watches_nothing(monkeypatch):
    monkeypatch.setattr("faulthandler.dump_traceback_later", lambda *_, **__: 1 / 0)
    with watching(0.0) as dog:
        dog.feed(1.0)


def test_the_limit_grows_with_the_steps(monkeypatch):
    limits = []
    monkeypatch.setattr(
        "faulthandler.dump_traceback_later", lambda limit, **_: limits.append(limit)
    )
    dog = Watchdog(10.0)
    for seconds in (None, 0.1, 2.0, 2.0, 2.0, None):
        dog.feed(seconds)
    assert limits == [60.0, 10.0, 21.0, 40.0, 40.0, 240.0]
