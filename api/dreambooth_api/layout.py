"""Names in the folder of a job that trainer and operator share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

MODEL: Final = "model"  # the folder of the published model
REPORT: Final = "report.html"
COMPARISON: Final = "comparison.png"
SUBJECT: Final = "subject.png"
RECONTEXTUALIZATION: Final = "recontextualization.png"
CLASS: Final = "class.png"
GALLERY: Final = "images"  # images of the model card, in the folder of the model
LOGS: Final = "logs"  # the folder of the logs of all attempts
VALIDATION: Final = "validation"  # the folder of images from the time of training
TRACKERS: Final = "trackers"  # the folder of what experiment trackers store locally
# What users look at. Every published job has these files in the folder of its model, with or without evaluation.
IMAGES: Final = (COMPARISON, SUBJECT, RECONTEXTUALIZATION, CLASS)
VIEWED: Final = (REPORT, *IMAGES)
_LOG = re.compile(r"attempt-(\d{1,9})\.log")


def latest_log(names: Iterable[str]) -> str | None:
    """The name of the log of the last attempt in the folder of logs; None if it has none."""
    found = [match for match in map(_LOG.fullmatch, names) if match]
    return max(found, key=lambda match: int(match[1]))[0] if found else None
