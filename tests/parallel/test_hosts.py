"""Processes that cannot be a run say so; what they do together is in the drill."""

import socket
import subprocess
import sys

import pytest

from reslab.core.errors import ReslabError
from reslab.parallel import hosts

ALONE = """
import sys
from reslab.parallel import hosts
hosts.join("127.0.0.1:" + sys.argv[1], 2, int(sys.argv[2]), seconds=2.0)
"""


def test_one_host_of_two_is_told_in_one_line():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    done = [
        subprocess.Popen(
            [sys.executable, "-c", ALONE, port, "1"], stderr=subprocess.PIPE, text=True
        )
    ]
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    done.append(
        subprocess.Popen(
            [sys.executable, "-c", ALONE, port, "0"], stderr=subprocess.PIPE, text=True
        )
    )
    for process in done:
        _, said = process.communicate(timeout=100)
        assert process.returncode == 2, said
        (line,) = said.splitlines()
        assert "the other hosts of this run have not come in 2 s" in line


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (("host:1", None, None), "belong together"),
        (("host", 2, 0), "--coordinator: expected HOST:PORT"),
        ((":1", 2, 0), "--coordinator: expected HOST:PORT"),
        (("host:70000", 2, 0), "--coordinator: expected HOST:PORT"),
        (("host:1", 0, 0), "--processes: expected at least 1"),
        (("host:1", 2, 2), "--process: expected 0 to 1"),
        (("host:1", 2, -1), "--process: expected 0 to 1"),
    ],
)
def test_arguments_that_make_no_sense(told, says):
    with pytest.raises(ReslabError) as caught:
        hosts.join(*told)
    assert says in str(caught.value)


def test_one_process_alone_agrees_with_itself():
    assert hosts.agree(True) and not hosts.agree(False)
    assert hosts.on_writer(lambda: 3) == 3
    hosts.check_same("a thing", "abc")
    hosts.wait_for_all("here")
    hosts.leave_alone(3)
    hosts.join()
