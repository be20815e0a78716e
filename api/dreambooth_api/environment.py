"""What the operator gives the trainer's process, and how the process answers when it ends."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

TRAINER_COMMAND: Final = ("python", "-m", "dreambooth_trainer")

# Environment variables.
OUT: Final = "DREAMBOOTH_OUT"  # the job's folder in the pod
OUT_SHOWN: Final = "DREAMBOOTH_OUT_SHOWN"  # the same folder, as a user outside the pod names it
STORE: Final = "DREAMBOOTH_STORE"  # where jobs share class images
PROGRESS_URL: Final = "DREAMBOOTH_PROGRESS_URL"  # where to send progress messages
PROGRESS_TOKEN_FILE: Final = "DREAMBOOTH_PROGRESS_TOKEN_FILE"  # noqa: S105 - the name of a variable
PROGRESS_CA_FILE: Final = "DREAMBOOTH_PROGRESS_CA_FILE"  # certificates to trust for that URL
DEBUG: Final = "DREAMBOOTH_DEBUG"  # if not empty: all logs, and tracebacks

# Paths in the trainer's containers.
JOB_PATH: Final = "/etc/dreambooth"
JOB_FILE_NAME: Final = "job.yaml"
JOB_FILE: Final = f"{JOB_PATH}/{JOB_FILE_NAME}"
IMAGES_PATH: Final = "/dreambooth/images"
OUTPUT_PATH: Final = "/dreambooth/output"
TOKEN_PATH: Final = "/var/run/secrets/dreambooth.dev"  # noqa: S105 - a folder
TOKEN_FILE: Final = f"{TOKEN_PATH}/token"

# Reasons of failures that both halves name: the trainer in its last message, the operator by the exit code.
INVALID_INPUT: Final = "InvalidInput"
BELOW_THRESHOLDS: Final = "BelowThresholds"
OUT_OF_MEMORY: Final = "OutOfMemory"


class ExitCode(IntEnum):
    """Exit codes of the trainer."""

    DONE = 0
    FAILED = 1  # running again may help
    INVALID_INPUT = 2  # running again will not help
    BELOW_THRESHOLDS = 3  # trained, but the scores are too low to publish
    INTERRUPTED = 130  # running again goes on from the last checkpoint
