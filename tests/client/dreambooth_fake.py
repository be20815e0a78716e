"""Stands for `dreambooth run`: takes the lock and writes the status as it does, but trains nothing.

The class of the subject says what happens: `dog` succeeds at once, `cat` runs until it is interrupted, `bird` fails,
`fish` dies without a word.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from io import StringIO
from pathlib import Path

from rich.console import Console

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.cli.run import reporting
from dreambooth_trainer.jobfile.load import load_job
from dreambooth_trainer.progress.console import LineReporter
from dreambooth_trainer.store.attempt_log import AttemptLog
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.owner import MANIFEST, owner_of
from dreambooth_trainer.store.published import sha256
from dreambooth_trainer.store.status_file import StatusReporter

PIXEL = b"\x89PNG\r\n\x1a\n"


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    job_file, _, out = sys.argv[1:4]
    signal.signal(signal.SIGTERM, interrupt)
    job, folder, log = load_job(Path(job_file)), JobFolder(Path(out)), AttemptLog()
    inner = LineReporter(Console(file=StringIO()))
    with contextlib.ExitStack() as stack:
        stack.enter_context(folder.locked())
        log.open(folder.root, None)
        reporter = stack.enter_context(reporting(StatusReporter(inner, folder, job)))
        stack.enter_context(log.recording())
        log.write("line 1\nline 2")
        reporter.finished(TrainerPhase.CLASS_IMAGES, {"wanted": 8, "reused": 3, "generated": 5})
        with reporter.phase(TrainerPhase.TRAIN) as progress:
            progress.total(10)
            progress.done(5, loss=0.25)
            match job.spec.all_subjects[0].class_:
                case "cat":
                    while True:
                        time.sleep(0.05)
                        progress.done(5, loss=0.25)
                case "bird":
                    raise UserError(ValidationIssue("spec.x", 1, "is <b>wrong</b>", "use 2"))
                case "fish":
                    print("killed by a shark", flush=True)
                    os._exit(9)
                case _:
                    progress.done(10, loss=0.125)
        reporter.finished(TrainerPhase.TRAIN, {})
        reporter.finished(TrainerPhase.EVALUATE, {"dino": 0.75})
        folder.model.mkdir()
        folder.report.write_text("report")
        for name in ("comparison", "subject", "recontextualization", "class"):
            (folder.model / f"{name}.png").write_bytes(PIXEL)
        files = {path.name: sha256(path) for path in folder.model.iterdir()}
        manifest = {"job": owner_of(job).model_dump(), "files": files}
        (folder.model / MANIFEST).write_text(json.dumps(manifest))
        reporter.finished(TrainerPhase.PUBLISH, {"uri": str(folder.model), "digest": "sha256:1"})
        log.write("line 3")


if __name__ == "__main__":
    main()
