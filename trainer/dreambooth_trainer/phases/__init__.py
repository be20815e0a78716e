"""The six phases of a job, in order."""

from dreambooth_trainer.phases.encode import ENCODE
from dreambooth_trainer.phases.evaluate import EVALUATE
from dreambooth_trainer.phases.prepare import PREPARE
from dreambooth_trainer.phases.priors import PRIORS
from dreambooth_trainer.phases.publish import PUBLISH
from dreambooth_trainer.phases.train import TRAIN

PHASES = (PREPARE, PRIORS, ENCODE, TRAIN, EVALUATE, PUBLISH)
