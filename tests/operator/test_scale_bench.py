"""The scale benchmark: it runs as one command, and never ends or waits without a word."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT / "tests" / "cluster")])}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of `bench/operator_scale.py`."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    import operator_scale

    return operator_scale


@pytest.mark.integration
def test_jobs_are_adopted_without_a_write_and_targets_are_printed() -> None:
    command = [sys.executable, str(ROOT / "bench" / "operator_scale.py")]
    command += ["--jobs=25", "--applies=5", "--quiet-seconds=1"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {line.rsplit(maxsplit=3)[0]: line.split()[-3:] for line in done.stdout.splitlines()}
    assert rows["writes"] == ["0.00", "0", "0.00"]
    assert rows["adoption, s"][1] == "5"
    assert float(rows["RayJobs / s"][0]) > 0
    assert "\n8 writes for each job\n" in done.stdout, "the peer makes the operator's writes"
    assert re.search(r"\noperator / bare client, \d+\.\d s: \d+\.\d\d x the time\n", done.stdout)
    assert re.search(r"\noperator / bare client: \d+\.\d\d x the RayJobs per second", done.stdout)


def test_the_peer_writes_what_the_operator_writes_for_a_new_job(bench: Any) -> None:
    import bare_client

    _, _, writes = bare_client.prepared_writes()
    kinds = [write.resource.kind for write in writes]
    children = ["ServiceAccount", "NetworkPolicy", "RayJob", "ConfigMap"]
    assert kinds == ["DreamBoothJob", "Event", *children, "DreamBoothJob"]
    assert [
        json.loads(write.text)["status"]["phase"] for write in writes if write.resource.kind == "DreamBoothJob"
    ] == [
        "Starting",
        "Starting",
    ]


def test_targets_are_printed_beside_the_numbers(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bench.report([*bench.adoption_rows(4.0, 47.5, 3.0), *bench.apply_rows(50.0, 1.0)])
    rows = [line.split()[-3:] for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [
        ["4.00", "5", "0.80"],
        ["47.50", "95", "0.50"],
        ["3.00", "0", "3.00"],
        ["50.00", "100", "2.00"],
        ["1.00", "2", "0.50"],
    ]


def test_stalled_measurement_and_ended_operator_are_errors(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "STALLED_SECONDS", 0)
    with bench.Operator(["sh", "-c", "echo sorry >&2; read line"], tmp_path / "log", None, stdin=-1) as process:
        progress = bench.Progress("applies", 10, process)
        time.sleep(0.01)
        progress.update(1)
        with pytest.raises(TimeoutError, match="applies: 1 of 10, none in 0 s"):
            progress.update(1)
        process.communicate()
        with pytest.raises(SystemExit, match=r"the operator exited \(\d+\):\nsorry"):
            progress.update(2)


def test_sigterm_is_reported() -> None:
    code = (
        "import signal, operator_scale as o; signal.signal(signal.SIGTERM, o.end); print(1, flush=True); signal.pause()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT / "bench", env=ENVIRONMENT, text=True, stdout=-1, stderr=-1
    )
    assert process.stdout
    assert process.stdout.readline() == "1\n"
    process.send_signal(signal.SIGTERM)
    assert "ended by SIGTERM before it was done" in process.communicate()[1]
    assert process.returncode == 1
