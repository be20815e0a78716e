"""Job files: loads a `DreamBoothJob` from YAML, reports all errors at once, and writes it back."""

from dreambooth_trainer.jobfile.explain import validate
from dreambooth_trainer.jobfile.load import dump_job, load_job

__all__ = ["dump_job", "load_job", "validate"]
