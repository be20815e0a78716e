"""Names in the folder of a job that trainer and operator share."""

from __future__ import annotations

from typing import Final

MODEL: Final = "model"  # the folder of the published model
REPORT: Final = "report.html"
COMPARISON: Final = "comparison.png"
SUBJECT: Final = "subject.png"
RECONTEXTUALIZATION: Final = "recontextualization.png"
CLASS: Final = "class.png"
GALLERY: Final = "images"  # images of the model card, in the folder of the model
LOGS: Final = "logs"  # the folder of the logs of all attempts
# What users look at. Every published job has these files in the folder of its model, with or without evaluation.
IMAGES: Final = (COMPARISON, SUBJECT, RECONTEXTUALIZATION, CLASS)
VIEWED: Final = (REPORT, *IMAGES)
