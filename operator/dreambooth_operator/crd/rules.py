"""CEL rules over several fields of a job, so that the API server rejects an invalid job with an actionable message.

`dreambooth_api.job` has the same rules for local runs. The rules that apply only on a cluster are defined here alone.
The sizes in `LIMITS` keep the estimated cost of the rules within the API server's budget.
"""

from __future__ import annotations

from typing import Any, get_args

from pydantic.alias_generators import to_camel

from dreambooth_api.fields import MAX_IDENTIFIER_LENGTH, Strict
from dreambooth_api.methods import (
    ADAPTER_WITH_TOKENS,
    MEMBERS,
    TOKEN_METHODS,
    WITHOUT_PRIOR,
    WITHOUT_TRAINING,
    methods_of_format,
    methods_with,
)
from dreambooth_api.metrics import METRICS
from dreambooth_api.output import Format
from dreambooth_api.preservation import MODE_MEMBERS, MODES, modes_with
from dreambooth_api.subject import Sampler
from dreambooth_api.training import MAX_VALIDATIONS, SETTINGS_OF_TRAINING, Training
from dreambooth_api.uris import BUILTIN, BUILTIN_SUBJECT, HUB, OBJECT_STORE, OBJECT_STORES

Rule = dict[str, str]

# Once the first attempt has started, its inputs are immutable; the run policy is not.
_STARTED = "has(oldSelf.status) && has(oldSelf.status.attempts) && oldSelf.status.attempts > 0"
_IMMUTABLE = (
    "subject",
    "subjects",
    "priorPreservation",
    "training",
    "evaluation",
    "output",
    "cluster",
    "model",
    "runtimeRef",
)
OF_CLASS_IMAGES = tuple(name for name in MODES["Images"].members if name not in MODES["Prediction"].members)


def _immutable(field: str) -> Rule:
    same = f"has(self.spec.{field}) == has(oldSelf.spec.{field}) && " + (
        f"(!has(self.spec.{field}) || self.spec.{field} == oldSelf.spec.{field})"
    )
    return {
        "rule": f"!({_STARTED}) || ({same})",
        "message": f"spec.{field} is immutable once the job has started: create another job, or change only "
        "spec.runPolicy",
    }


def _member(name: str) -> Rule:
    """A field of `spec.training` belongs to some methods only: a union with discriminator `method`."""
    field, methods = to_camel(name), methods_with(name)
    return {
        "rule": f"!has(self.{field}) || self.method in {list(methods)}",
        "message": f"{field} does not apply to this method: remove {field}, or set method: {' or '.join(methods)}",
    }


def _mode_member(name: str) -> Rule:
    """A field of `spec.priorPreservation` belongs to some modes only. The default of mode depends on the method."""
    field, modes = to_camel(name), modes_with(name)
    return {
        "rule": f"!has(self.mode) || self.mode in {list(modes)} || {_unset(name)}",
        "message": f"{field} does not apply to this mode: remove {field}, or set mode: {' or '.join(modes)}",
    }


def _unset(name: str, parent: str = "self") -> str:
    """CEL: whether a field of `MODE_MEMBERS` has no value, or that which the API server supplies."""
    path = f"{parent}.{to_camel(name)}"
    if name != "sampler":
        return f"!has({path})"
    # The API server also evaluates the rule for the default {}, before nested defaults apply.
    default = f"(!has({path}.scheduler) || {path}.scheduler == '{Sampler().scheduler}')"
    return f"(!has({path}) || (!has({path}.steps) && !has({path}.guidanceScale) && {default}))"


def _has_default(model: type[Strict], name: str, parent: str) -> str:
    """CEL: whether a field has no value, or that which the API server supplies. Values of any type cannot be compared.

    The API server also evaluates the rule for the default {} of the parent, before nested defaults apply.
    """
    field, path = model.model_fields[name], f"{parent}.{to_camel(name)}"
    default: object = field.get_default(call_default_factory=True)
    if default is None:
        return f"!has({path})"
    if isinstance(default, Strict):
        nested = [_has_default(type(default), name, path) for name in type(default).model_fields]
        return f"(!has({path}) || ({' && '.join(filter(None, nested))}))"
    if isinstance(default, dict):
        return ""
    literal = f"'{default}'" if isinstance(default, str) else str(default).lower()
    return f"(!has({path}) || {path} == {literal})"


def _format(name: str) -> Rule:
    """Only some methods publish a format. The default of training applies after this rule."""
    methods = methods_of_format(name)
    method = "has(self.training) && has(self.training.method)"
    allowed = f"{method} && self.training.method in {list(methods)}"
    if "Full" in methods:  # the default
        allowed = f"!({method}) || self.training.method in {list(methods)}"
    return {
        "rule": f"!has(self.output) || !has(self.output.formats) || !('{name}' in self.output.formats) || ({allowed})",
        "message": f"output.formats contains {name}, which the method does not publish: remove {name}, or set "
        f"training.method: {' or '.join(methods)}",
    }


_BEST = "has(self.output) && has(self.output.select) && self.output.select == 'Best'"
_ANY_THRESHOLD = " || ".join(f"has(self.thresholds.{metric.name})" for metric in METRICS if metric.threshold)


def _contains_word(text: str, word: str, lower: str = "") -> str:
    """CEL for `words.contains_word`. The word is replaced literally, so user text is not part of the pattern.

    Args:
        lower: ".lowerAscii()" ignores the case.
    """
    marked = f"{text}{lower}.replace({word}{lower}, '\\u0001')"
    return rf"{marked}.matches('(^|[^\\p{{L}}\\p{{N}}\\x01])\\x01($|[^\\p{{L}}\\p{{N}}\\x01])')"


_IMAGE_RULES: list[Rule] = [
    {
        "rule": "[has(self.uri), has(self.pvc), has(self.configMap), has(self.secret)].filter(x, x).size() == 1",
        "message": "set exactly one of uri, pvc, configMap, secret",
    },
    {
        "rule": f"!has(self.uri) || self.uri.matches('^{OBJECT_STORE}|^https://|^{BUILTIN}')",
        "message": f"on a cluster, uri must be a folder in {OBJECT_STORES}, an https archive, or {BUILTIN_SUBJECT}: "
        "for local images, run kubectl create configmap NAME --from-file=FOLDER and set configMap: {name: NAME}",
    },
]
_SUBJECT_RULES: list[Rule] = [
    {
        "rule": "self.identifier == 'auto' || !has(self.instancePrompt) || "
        + _contains_word("self.instancePrompt", "self.identifier"),
        "message": "instancePrompt must contain the identifier as a separate word, for example 'a sks dog'",
    },
    {
        "rule": "self.identifier != 'auto' || !has(self.instancePrompt)",
        "message": "instancePrompt requires a fixed identifier: replace auto with, for example, identifier: sks",
    },
    {
        "rule": "!has(self.captions) || self.captions.all(f, "
        + _contains_word("self.captions[f]", "self.identifier")
        + ")",
        "message": "each caption must contain the identifier as a separate word, for example 'a sks dog asleep'",
    },
    {
        "rule": "self.identifier == 'auto' || !" + _contains_word("self.class", "self.identifier", ".lowerAscii()"),
        "message": "identifier must not be a word of the class: set a rare word, for example sks, or auto",
    },
]

# Rules by field path from the root of a DreamBoothJob.
JOB_RULES: dict[str, list[Rule]] = {
    "": [
        {
            "rule": "self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
            "message": "metadata.name must have at most 63 lowercase letters, digits and hyphens, for example my-dog",
        },
        *(_immutable(field) for field in _IMMUTABLE),
    ],
    "spec": [
        {
            "rule": "has(self.subject) != has(self.subjects)",
            "message": "set exactly one of subject, subjects",
        },
        {
            "rule": "!has(self.subjects) || self.subjects.all(s, s.identifier == 'auto' || "
            "self.subjects.filter(t, t.identifier.lowerAscii() == s.identifier.lowerAscii()).size() == 1)",
            "message": "the identifiers of subjects must differ: set a rare word for each, or auto",
        },
        {
            "rule": "!has(self.subjects) || !has(self.priorPreservation) || !has(self.priorPreservation.classPrompt)",
            "message": "priorPreservation.classPrompt applies to a single subject: set classPrompt in each item of "
            "subjects instead",
        },
        {
            "rule": "!has(self.subjects) || !has(self.priorPreservation) || !has(self.priorPreservation.images)",
            "message": "priorPreservation.images applies to a single subject: remove images",
        },
        {
            "rule": "!has(self.subject) || !has(self.priorPreservation) || !has(self.priorPreservation.classPrompt) || "
            "self.subject.identifier == 'auto' || !"
            + _contains_word("self.priorPreservation.classPrompt", "self.subject.identifier", ".lowerAscii()"),
            "message": "priorPreservation.classPrompt must not contain the identifier: write, for example, 'a dog'",
        },
        *(_format(name) for name in get_args(Format)),
        {
            "rule": "!has(self.training) || !has(self.training.method) || "
            f"!(self.training.method in {list(ADAPTER_WITH_TOKENS)}) || !has(self.output) || "
            "!has(self.output.formats) || ('lora' in self.output.formats) == ('embeddings' in self.output.formats)",
            "message": f"the adapter and the tokens of method {' or '.join(ADAPTER_WITH_TOKENS)} need each other: list "
            "both lora and embeddings in output.formats, or neither",
        },
        {
            "rule": "!has(self.training) || !has(self.training.method) || "
            f"!(self.training.method in {list(WITHOUT_PRIOR)}) || !has(self.priorPreservation) || "
            "((!has(self.priorPreservation.mode) || self.priorPreservation.mode == 'None') && "
            + " && ".join(_unset(name, "self.priorPreservation") for name in MODE_MEMBERS)
            + ")",
            "message": f"priorPreservation does not apply to method {' or '.join(WITHOUT_PRIOR)}, which does not "
            f"change the model's weights: remove mode, {', '.join(map(to_camel, MODE_MEMBERS))}, or set "
            "training.method: LoRA",
        },
        {
            "rule": "!has(self.training) || !has(self.training.hyperNetwork) || !has(self.priorPreservation) || "
            "has(self.priorPreservation.mode) || ("
            + " && ".join(_unset(name, "self.priorPreservation") for name in OF_CLASS_IMAGES)
            + ")",
            "message": f"{', '.join(map(to_camel, OF_CLASS_IMAGES))} of priorPreservation do not apply to mode "
            "Prediction, the default with training.hyperNetwork: remove them, or set mode: Images",
        },
        {
            "rule": f"!({_BEST}) || (has(self.training) && has(self.training.validation) && (!has(self.evaluation) || "
            "!has(self.evaluation.enabled) || self.evaluation.enabled))",
            "message": "output.select is Best, which requires the scores of validations: set training.validation and "
            "evaluation.enabled: true, or remove select",
        },
        {
            "rule": "!has(self.training) || !has(self.training.validation) || "
            f"!has(self.training.validation.patience) || ({_BEST})",
            "message": "training.validation.patience applies only to output.select: Best: set it, or remove patience",
        },
    ],
    "spec.subject.images": _IMAGE_RULES,
    "spec.subjects[].images": _IMAGE_RULES,
    "spec.priorPreservation": [_mode_member(name) for name in MODE_MEMBERS],
    "spec.priorPreservation.images": _IMAGE_RULES,
    "spec.subject": _SUBJECT_RULES,
    "spec.subjects[]": [
        *_SUBJECT_RULES,
        {
            "rule": "!has(self.classPrompt) || self.identifier == 'auto' || !"
            + _contains_word("self.classPrompt", "self.identifier", ".lowerAscii()"),
            "message": "classPrompt must not contain the identifier: write, for example, 'a dog'",
        },
    ],
    "spec.training": [
        {
            "rule": "!has(self.steps) || self.warmupSteps <= self.steps",
            "message": "warmupSteps must not exceed steps: decrease warmupSteps or increase steps",
        },
        {
            "rule": "!has(self.checkpointEverySteps) || !has(self.steps) || self.checkpointEverySteps <= self.steps",
            "message": "checkpointEverySteps must not exceed steps, or no checkpoint is saved: decrease it",
        },
        *(_member(name) for name in MEMBERS),
        {
            "rule": f"!has(self.method) || !(self.method in {list(WITHOUT_TRAINING)}) || ("
            + " && ".join(_has_default(Training, name, "self") for name in SETTINGS_OF_TRAINING)
            + ")",
            "message": f"method {' or '.join(WITHOUT_TRAINING)} trains nothing, so settings of the training do not "
            f"apply: remove {', '.join(map(to_camel, SETTINGS_OF_TRAINING))}, or set another method",
        },
        {
            "rule": "!has(self.validation) || !has(self.steps) || "
            f"self.steps <= {MAX_VALIDATIONS} * self.validation.everySteps",
            "message": f"validation.everySteps gives more than {MAX_VALIDATIONS} validations: increase it",
        },
        {
            "rule": "!has(self.reportTo) || self.reportTo.all(x, self.reportTo.filter(y, y == x).size() == 1)",
            "message": "reportTo contains a tracker more than once: list each tracker once",
        },
        {
            "rule": f"!has(self.method) || !(self.method in {list(TOKEN_METHODS)}) || !has(self.textEncoder) || "
            "!has(self.textEncoder.train) || !self.textEncoder.train",
            "message": "methods with new tokens do not train the weights of the text encoder: remove "
            "textEncoder.train, or set method: LoRA",
        },
    ],
    "spec.evaluation": [
        {
            # The API server also evaluates the rule for the default {} of evaluation, before nested defaults apply.
            "rule": f"!has(self.enabled) || self.enabled || !has(self.thresholds) || !({_ANY_THRESHOLD})",
            "message": "thresholds require scores, and enabled is false: remove thresholds, or set enabled: true",
        },
    ],
    "spec.output": [
        {"rule": "!(has(self.uri) && has(self.pvc))", "message": "set only one of uri and pvc"},
        {
            "rule": f"!has(self.uri) || self.uri.matches('^{OBJECT_STORE}|^{HUB}')",
            "message": f"on a cluster, uri must be a folder in {OBJECT_STORES}, or {HUB}<owner>/<name>: for a volume, "
            "set pvc: {claimName: ...}",
        },
    ],
    "spec.cluster.elastic": [
        {
            "rule": "self.minWorkers <= self.maxWorkers",
            "message": "maxWorkers must not be less than minWorkers",
        }
    ],
}

# Sizes that keep the cost of the rules low and that local runs do not need: schema keywords by path.
LIMITS: dict[str, dict[str, Any]] = {
    **{
        f"{subject}.{field}": limit
        for subject in ("spec.subject", "spec.subjects[]")
        for field, limit in (
            ("images.uri", {"maxLength": 1000}),
            ("captions", {"maxProperties": 200}),
            ("identifier", {"maxLength": MAX_IDENTIFIER_LENGTH}),
        )
    },
    "spec.priorPreservation.images.uri": {"maxLength": 1000},
    "spec.output.uri": {"maxLength": 1000},
    "spec.cluster.nodeSelector": {"maxProperties": 32},
    "spec.cluster.nodeSelector{}": {"maxLength": 63},
    "spec.cluster.tolerations": {"maxItems": 32},
    "spec.cluster.image": {"maxLength": 500},
    "spec.model.id": {"maxLength": 500},
    "spec.model.revision": {"maxLength": 200},
    "spec.model.superResolution.id": {"maxLength": 500},
    "spec.model.superResolution.revision": {"maxLength": 200},
    "spec.training.imagePrompt.adapter.id": {"maxLength": 500},
    "spec.training.imagePrompt.adapter.revision": {"maxLength": 200},
    "spec.evaluation.encoders.dino": {"maxLength": 500},
    "spec.evaluation.encoders.clip": {"maxLength": 500},
}
# Of a LocalDreamBoothRuntime, which users write and the operator caches.
LOCAL_RUNTIME_LIMITS: dict[str, dict[str, Any]] = {
    **{path: limit for path, limit in LIMITS.items() if path.startswith("spec.model.")},
    "spec.pods.nodeSelector{}": LIMITS["spec.cluster.nodeSelector{}"],
}
# Maximum length of a DNS subdomain, the grammar of object names.
NAME_LIMIT = 253
