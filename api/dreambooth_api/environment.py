"""Interface between operator and trainer process: environment variables, mounted paths, failures, exit codes."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

TRAINER_COMMAND: Final = ("python", "-m", "dreambooth_trainer")
PRE_STOP_COMMAND: Final = ("python", "-m", "dreambooth_trainer.cluster.pre_stop")
SAVE_SECONDS: Final = 105  # how long a pod that ends waits until training has saved a checkpoint

# Environment variables.
OUT: Final = "DREAMBOOTH_OUT"  # the job's folder in the pod
JOB_SHA256: Final = "DREAMBOOTH_JOB_SHA256"  # digest of the job file that the operator wrote
ATTEMPT: Final = "DREAMBOOTH_ATTEMPT"  # number of the attempt, which its log is named after
OUT_SHOWN: Final = "DREAMBOOTH_OUT_SHOWN"  # the same folder as shown to users outside the pod
STORE: Final = "DREAMBOOTH_STORE"  # where jobs share class images
STORE_KEY: Final = "DREAMBOOTH_STORE_KEY"  # signs class images that jobs of several namespaces share
PROGRESS_URL: Final = "DREAMBOOTH_PROGRESS_URL"  # where to send progress messages
PROGRESS_TOKEN_FILE: Final = "DREAMBOOTH_PROGRESS_TOKEN_FILE"  # noqa: S105 - a variable name
PROGRESS_CA_FILE: Final = "DREAMBOOTH_PROGRESS_CA_FILE"  # certificates by which that server is verified
LOCK_FD: Final = "DREAMBOOTH_LOCK_FD"  # descriptor of a job folder's lock, which a client passes to the job
DEBUG: Final = "DREAMBOOTH_DEBUG"  # if not empty, print all logs and tracebacks

# Paths in the trainer's containers.
JOB_PATH: Final = "/etc/dreambooth"
JOB_FILE_NAME: Final = "job.yaml"
JOB_FILE: Final = f"{JOB_PATH}/{JOB_FILE_NAME}"
PROGRESS_CA_NAME: Final = "ca.crt"
PROGRESS_CA: Final = f"{JOB_PATH}/{PROGRESS_CA_NAME}"
IMAGES_PATH: Final = "/dreambooth/images"
OUTPUT_PATH: Final = "/dreambooth/output"
MODELS_PATH: Final = "/dreambooth/models"
TOKEN_PATH: Final = "/var/run/secrets/dreambooth.dev"  # noqa: S105 - a folder
TOKEN_FILE: Final = f"{TOKEN_PATH}/token"

# Failure reasons that both sides use: the trainer reports them, the operator derives them from exit codes.
INVALID_INPUT: Final = "InvalidInput"
BELOW_THRESHOLDS: Final = "BelowThresholds"
OUT_OF_MEMORY: Final = "OutOfMemory"


class ExitCode(IntEnum):
    """Exit codes of the trainer."""

    DONE = 0
    FAILED = 1  # the same command may succeed
    INVALID_INPUT = 2  # the same command fails again
    BELOW_THRESHOLDS = 3  # trained, but the scores are too low to publish
    INTERRUPTED = 130  # the same command continues from the last checkpoint
