"""Job files: from YAML to a `DreamBoothJob` and back, every fault told at once in the user's words."""

from dreambooth_trainer.jobfile.explain import validate
from dreambooth_trainer.jobfile.load import dump_job, load_job

__all__ = ["dump_job", "load_job", "validate"]
