"""Rules of a job that span fields, in CEL, so that the API server refuses a bad job with a sentence.

`dreambooth_api.job` has the same rules for local runs; here are also those that hold on a cluster
only. Messages say what to write. Sizes in `LIMITS` bound what a rule may cost to evaluate.
"""

from __future__ import annotations

from typing import Any

from dreambooth_api.uris import BUILTIN, OBJECT_STORE

Rule = dict[str, str]

# Once an attempt began, what it works from is fixed; the run policy is not.
_STARTED = "has(oldSelf.status) && has(oldSelf.status.attempts) && oldSelf.status.attempts > 0"
_FIXED = ("subject", "priorPreservation", "training", "evaluation", "output", "cluster", "model", "runtimeRef")


def _fixed(field: str) -> Rule:
    same = f"has(self.spec.{field}) == has(oldSelf.spec.{field}) && " + (
        f"(!has(self.spec.{field}) || self.spec.{field} == oldSelf.spec.{field})"
    )
    return {
        "rule": f"!({_STARTED}) || ({same})",
        "message": f"spec.{field} is fixed once the job has started: create another job, or change spec.runPolicy only",
    }


# By path from the root of a DreamBoothJob.
JOB_RULES: dict[str, list[Rule]] = {
    "": [
        {
            "rule": "self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
            "message": "metadata.name must be at most 63 lower-case letters, digits and hyphens: "
            "write for example my-dog",
        },
        *(_fixed(field) for field in _FIXED),
    ],
    "spec.subject.images": [
        {
            "rule": "[has(self.uri), has(self.pvc), has(self.configMap), has(self.secret)].filter(x, x).size() == 1",
            "message": "give exactly one of uri, pvc, configMap, secret",
        },
        {
            "rule": f"!has(self.uri) || self.uri.matches('^{OBJECT_STORE}|^{BUILTIN}')",
            "message": "on a cluster uri is an s3:// or gs:// folder or builtin:sprites/<name>: for images on your "
            "machine write configMap: {name: ...} after kubectl create configmap NAME --from-file=FOLDER",
        },
    ],
    "spec.subject": [
        {
            "rule": "self.identifier == 'auto' || !has(self.instancePrompt) || "
            "self.identifier in self.instancePrompt.split(' ')",
            "message": "instancePrompt must contain the identifier as a word: write for example 'a sks dog'",
        },
        {
            "rule": "self.identifier != 'auto' || !has(self.instancePrompt)",
            "message": "instancePrompt needs a known identifier: write identifier: sks, say, in place of auto",
        },
        {
            "rule": "!has(self.captions) || self.captions.all(f, self.identifier in self.captions[f].split(' '))",
            "message": "each of captions must contain the identifier as a word: write for example 'a sks dog asleep'",
        },
    ],
    "spec.training": [
        {
            "rule": "!has(self.steps) || self.warmupSteps <= self.steps",
            "message": "warmupSteps must not be above steps: write fewer warmupSteps or more steps",
        },
        {
            "rule": "!has(self.checkpointEverySteps) || !has(self.steps) || self.checkpointEverySteps <= self.steps",
            "message": "checkpointEverySteps must not be above steps, else nothing is ever kept: write fewer",
        },
    ],
    "spec.evaluation": [
        {
            # The API server also applies it to the default of evaluation, {}, before defaults are filled in.
            "rule": "!has(self.enabled) || self.enabled || !has(self.thresholds) || "
            "!(has(self.thresholds.dino) || has(self.thresholds.clipI) || has(self.thresholds.clipT))",
            "message": "thresholds need scores, and enabled: false measures none: remove thresholds, or write "
            "enabled: true",
        },
    ],
    "spec.output": [
        {"rule": "!(has(self.uri) && has(self.pvc))", "message": "give uri or pvc, not both"},
        {
            "rule": f"!has(self.uri) || self.uri.matches('^{OBJECT_STORE}')",
            "message": "on a cluster uri is an s3:// or gs:// folder: for a volume write pvc: {claimName: ...}",
        },
    ],
    "spec.cluster.elastic": [
        {
            "rule": "self.minWorkers <= self.maxWorkers",
            "message": "maxWorkers must not be below minWorkers: swap them",
        }
    ],
}

# Bounds that the trainer does not need, and that keep rules cheap: schema keys by path.
LIMITS: dict[str, dict[str, Any]] = {
    "spec.subject.images.uri": {"maxLength": 1000},
    "spec.subject.captions": {"maxProperties": 200},
    "spec.subject.identifier": {"maxLength": 32},
    "spec.output.uri": {"maxLength": 1000},
    "spec.cluster.nodeSelector": {"maxProperties": 32},
    "spec.cluster.nodeSelector{}": {"maxLength": 63},
    "spec.cluster.tolerations": {"maxItems": 32},
    "spec.cluster.image": {"maxLength": 500},
    "spec.model.id": {"maxLength": 500},
    "spec.model.revision": {"maxLength": 200},
    "spec.evaluation.encoders.dino": {"maxLength": 500},
    "spec.evaluation.encoders.clip": {"maxLength": 500},
}
# Object names are DNS subdomains wherever they stand.
NAME_LIMIT = 253
