"""Processes that cannot be a run say so; what they do together is in the drill."""

import glob
import http.server
import os
import socket
import subprocess
import sys
import threading

import jax
import pytest

from reslab.core.errors import ReslabError
from reslab.parallel import hosts
from reslab.parallel.mesh import make_mesh

ALONE = """
import sys
from reslab.parallel import hosts
hosts.join("127.0.0.1:" + sys.argv[1], 2, int(sys.argv[2]), seconds=2.0)
"""


@pytest.mark.conformance
def test_one_host_of_two_is_told_in_one_line():
    done = [
        subprocess.Popen(
            [sys.executable, "-c", ALONE, str(free_port()), process],
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in ("1", "0")
    ]
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


@pytest.fixture
def chips(monkeypatch):
    """A machine with TPU chips, and nothing in its environment."""
    monkeypatch.setattr(glob, "glob", lambda pattern: ["/dev/accel0"])
    for name in ("JAX_PLATFORMS", "TPU_WORKER_ID", "CLOUD_TPU_TASK_ID"):
        monkeypatch.delenv(name, raising=False)


def test_chips_alone_make_it_ask_for_other_hosts(chips, monkeypatch):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: asked.append(a))
    hosts.join()
    assert asked == [(None, None, None)]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    hosts.join()
    assert len(asked) == 1


@pytest.mark.parametrize(
    "error", [ConnectionError("refused"), ValueError("no cluster")]
)
def test_a_host_that_nothing_is_known_of_is_alone(chips, monkeypatch, error):
    def fail(*arguments, **keywords):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    hosts.join()
    with pytest.raises(ReslabError, match="cannot find each other"):
        hosts.join("127.0.0.1:1", 2, 0)


def test_one_host_of_a_slice_is_refused_where_it_has_not_joined(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ReslabError, match="one of 4 of its TPU slice"):
        make_mesh({"data": -1})


VM = """
import sys, time
import jax
from reslab.parallel import hosts
# A TPU VM without the hardware: chips that are files, and JAX told that it is on one.
import glob; glob.glob = lambda pattern: ["/dev/accel0"]
import os; os.environ.pop("TPU_SKIP_MDS_QUERY", None)
start = time.time()
hosts.join(seconds=float(sys.argv[1]))
took = time.time() - start
jax.config.update("jax_platforms", "cpu")
print(jax.process_index(), jax.process_count(), jax.distributed.is_initialized(), took)
"""


class MetadataServer(http.server.BaseHTTPRequestHandler):
    """What a TPU VM asks: the number of its worker, and the addresses of all."""

    worker, workers = 0, 1

    def do_GET(self):
        answers = {
            "agent-worker-number": str(self.worker),
            "worker-network-endpoints": ",".join(["127.0.0.1"] * self.workers),
            "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'",
        }
        text = answers.get(self.path.rpartition("/")[2])
        is_asked = self.headers["Metadata-Flavor"] == "Google" and text is not None
        self.send_response(200 if is_asked else 404)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def start_vm():
    """Starts a worker of a slice whose metadata server is a stand-in on loopback."""
    servers, started = [], []

    def start(worker, workers, port, seconds=60):
        known = {"worker": worker, "workers": workers}
        kind = type("Server", (MetadataServer,), known)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        environment = os.environ | {
            "GCE_METADATA_IP": f"127.0.0.1:{server.server_port}",
            "JAX_COORDINATOR_PORT": str(port),
            "JAX_FORCE_TPU_INIT": "1",
        }
        for name in ("JAX_PLATFORMS", "XLA_FLAGS", "TPU_WORKER_ID"):
            environment.pop(name, None)
        command = [sys.executable, "-c", VM, str(seconds)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
    for server in servers:
        server.shutdown()
        server.server_close()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.conformance
def test_workers_of_a_tpu_vm_find_each_other_by_its_metadata_server(start_vm):
    port = free_port()
    pair = [start_vm(worker, 2, port) for worker in (0, 1)]
    for index, process in enumerate(pair):
        said, errors = process.communicate(timeout=100)
        assert said.split()[:3] == [str(index), "2", "True"], errors


@pytest.mark.conformance
def test_a_tpu_vm_of_one_host_does_not_wait(start_vm):
    said, errors = start_vm(0, 1, free_port()).communicate(timeout=100)
    index, count, is_joined, took = said.split()
    assert (index, count, is_joined) == ("0", "1", "True"), errors
    assert float(took) < 5.0


@pytest.mark.conformance
def test_one_host_of_a_slice_alone_is_told_in_one_line(start_vm):
    process = start_vm(1, 2, free_port(), seconds=2)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 2
    (line,) = said.splitlines()
    assert "the other hosts of this run have not come in 2 s" in line
