"""ValidatingAdmissionPolicy that reports the bounds of a runtime when a job is applied.

The API server evaluates it for each runtime; it judges the jobs of that runtime, also by the defaults of fields that
they omit. Before a job starts, the operator checks the resolved spec (`controller/bounds.py`), because the runtime may
have been created or changed since. Of an update, only what it changes is judged, as Kubernetes' ratcheting validation
does: a bound that was lowered later must prevent neither the operator from removing a finalizer, nor a user from
suspending the job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dreambooth_api.job import DEFAULT_ENCODERS
from dreambooth_api.methods import WITHOUT_PRIOR, WITHOUT_TRAINING
from dreambooth_api.runtime import NAMESPACE_PLACEHOLDER
from dreambooth_api.runtimeref import DEFAULT_RUNTIME, LOCAL_RUNTIME_KIND
from dreambooth_api.subject import MAX_DEFAULT_CLASS_IMAGES
from dreambooth_api.training import DEFAULT_STEPS, HYPER_NETWORK_SHARE
from dreambooth_api.uris import BUILTIN_SPRITES, VOLUME
from dreambooth_operator.resources import GROUP, JOBS, RUNTIMES

NAME = "dreambooth-bounds"
_MIN_CPU = "100m"


def _list(name: str) -> str:
    """CEL: a list in the bounds of the runtime; empty if it is not set."""
    return f"(has(params.spec.bounds.{name}) ? params.spec.bounds.{name} : [])"


def _larger_default(bound: str, default: str) -> str:
    """CEL: a bound, or the runtime's own default if that is larger."""
    limit, own = f"params.spec.bounds.{bound}", f"params.spec.defaults.{default}"
    return f"(has({own}) && {own} > {limit} ? {own} : {limit})"


def _larger_quantity(bound: str, own: str) -> str:
    """CEL: a bound per worker, or the runtime's worker if that is larger."""
    limit, worker = f"params.spec.bounds.{bound}", f"params.spec.pods.worker.{own}"
    is_larger = f"has({limit}) && quantity({limit}).isGreaterThan(quantity({worker}))"
    return f"({is_larger} ? {limit} : {worker})"


_VARIABLES = {
    "keepsRuntime": "oldObject != null && object.spec.?runtimeRef == oldObject.spec.?runtimeRef",
    # Empty for a job of a local runtime, which no DreamBoothRuntime judges: what that sets is not known here.
    "runtime": f"!has(object.spec.runtimeRef) ? '{DEFAULT_RUNTIME}' : "
    f"object.spec.runtimeRef.kind == '{LOCAL_RUNTIME_KIND}' ? '' : object.spec.runtimeRef.name",
    "subjects": "has(object.spec.subjects) ? object.spec.subjects.size() : 1",
    "by": "'the limit set by DreamBoothRuntime ' + params.metadata.name",
    "elastic": "has(object.spec.cluster.elastic)",
    "workers": "variables.elastic ? object.spec.cluster.elastic.maxWorkers : object.spec.cluster.workers",
    "gpus": "has(object.spec.cluster.resources.gpu) ? object.spec.cluster.resources.gpu : params.spec.pods.worker.gpu",
    "images": f"{_list('images')}.map(e, e.endsWith('/') ? e.substring(0, e.size() - 1) : e)",
    "ownModel": "params.spec.model.id + (has(params.spec.model.revision) ? '@' + params.spec.model.revision : '')",
    "model": "!has(object.spec.model) || (object.spec.model.id == params.spec.model.id && "
    "!has(object.spec.model.revision)) ? variables.ownModel : object.spec.model.id + "
    "(has(object.spec.model.revision) ? '@' + object.spec.model.revision : '')",
    "ownSuperResolution": "has(params.spec.model.superResolution) ? params.spec.model.superResolution.id + "
    "(has(params.spec.model.superResolution.revision) ? '@' + params.spec.model.superResolution.revision : '') : ''",
    "superResolution": "!has(object.spec.model) || !has(object.spec.model.superResolution) || "
    "(has(params.spec.model.superResolution) && !has(object.spec.model.superResolution.revision) && "
    "object.spec.model.superResolution.id == params.spec.model.superResolution.id) ? variables.ownSuperResolution : "
    "object.spec.model.superResolution.id + (has(object.spec.model.superResolution.revision) ? '@' + "
    "object.spec.model.superResolution.revision : '')",
    "hasAdapter": "has(object.spec.training) && has(object.spec.training.imagePrompt) && "
    "has(object.spec.training.imagePrompt.adapter)",
    "adapter": "!variables.hasAdapter ? '' : object.spec.training.imagePrompt.adapter.id + "
    "(has(object.spec.training.imagePrompt.adapter.revision) ? '@' + "
    "object.spec.training.imagePrompt.adapter.revision : '')",
    "hasNetwork": "has(object.spec.training) && has(object.spec.training.hyperNetwork)",
    "network": "!variables.hasNetwork ? '' : object.spec.training.hyperNetwork.id + "
    "(has(object.spec.training.hyperNetwork.revision) ? '@' + object.spec.training.hyperNetwork.revision : '')",
    "outputs": f"{_list('outputs')}.map(e, e.replace('{NAMESPACE_PLACEHOLDER}', object.metadata.namespace))",
    "folder": "has(object.spec.output.pvc) && has(object.spec.output.pvc.path) && object.spec.output.pvc.path != '' ? "
    "object.spec.output.pvc.path : object.metadata.name",
    "nodeSelector": "has(params.spec.pods.nodeSelector) ? params.spec.pods.nodeSelector : {}",
    "tolerations": "has(params.spec.pods.tolerations) ? params.spec.pods.tolerations : []",
}
# Optional numbers of a job: path, and the CEL of their limit. The deadline defaults to its limit.
_NUMBERS = {
    "training.steps": _larger_default("maxSteps", "steps"),
    "priorPreservation.numClassImages": _larger_default("maxClassImages", "numClassImages"),
    "runPolicy.activeDeadlineSeconds": _larger_default("maxActiveDeadlineSeconds", "activeDeadlineSeconds"),
}
# The highest values that the trainer chooses for omitted fields: path, name of the runtime's default, CEL, and other
# fields that it depends on.
_DEFAULTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "training.steps": (
        "steps",
        f"variables.subjects * (variables.hasNetwork ? {DEFAULT_STEPS // HYPER_NETWORK_SHARE} : {DEFAULT_STEPS})",
        ("subjects", "training.hyperNetwork"),
    ),
    "priorPreservation.numClassImages": ("numClassImages", str(MAX_DEFAULT_CLASS_IMAGES), ()),
}
_RESOURCES = {"cpu": _larger_quantity("maxCpu", "cpu"), "memory": _larger_quantity("maxMemory", "memory")}


@dataclass(frozen=True)
class _Rule:
    """A rule.

    Attributes:
        fields: fields of the spec that it depends on. It does not apply to updates that change none of them.
        holds: CEL of what must hold.
        message: CEL of the message if it does not.
    """

    fields: tuple[str, ...]
    holds: str
    message: str

    @property
    def expression(self) -> str:
        """CEL: it holds, or does not judge the job."""
        same = "".join(f" && object.spec.{path} == oldObject.spec.{path}" for path in map(_optional, self.fields))
        return f"variables.runtime != params.metadata.name || (variables.keepsRuntime{same}) || ({self.holds})"


def _optional(path: str) -> str:
    return ".".join(f"?{name}" for name in path.split("."))


def bounds_policy() -> list[dict[str, Any]]:
    """The policy and its binding."""
    metadata: dict[str, Any] = {"name": NAME, "labels": {"app.kubernetes.io/name": "dreambooth-operator"}}
    rule = {
        "apiGroups": [GROUP], "apiVersions": [JOBS.version], "operations": ["CREATE", "UPDATE"],
        "resources": [JOBS.plural],
    }  # fmt: skip
    policy = {
        # The operator checks bounds as well, so an error in the policy need not stop anybody.
        "failurePolicy": "Ignore",
        "paramKind": {"apiVersion": RUNTIMES.api_version, "kind": RUNTIMES.kind},
        "matchConstraints": {"resourceRules": [rule]},
        "matchConditions": [
            {"name": "spec-changed", "expression": "oldObject == null || object.spec != oldObject.spec"}
        ],
        "variables": [{"name": name, "expression": expression} for name, expression in _VARIABLES.items()],
        "validations": [{"expression": rule.expression, "messageExpression": rule.message} for rule in _validations()],
    }
    binding: dict[str, Any] = {
        "policyName": NAME,
        "paramRef": {"selector": {}, "parameterNotFoundAction": "Allow"},
        "validationActions": ["Deny"],
    }
    api_version = "admissionregistration.k8s.io/v1"
    return [
        {"apiVersion": api_version, "kind": "ValidatingAdmissionPolicy", "metadata": metadata, "spec": policy},
        {"apiVersion": api_version, "kind": "ValidatingAdmissionPolicyBinding", "metadata": metadata, "spec": binding},
    ]


def _validations() -> list[_Rule]:
    return [*_numbers(), *_workers(), *_resources(), *_choices(), *_sources(), *_outputs(), *_placement()]


def _exceeds(path: str, value: str, limit: str) -> str:
    return f"'spec.{path}: ' + string({value}) + ' exceeds ' + string({limit}) + ', ' + variables.by"


def _omitted(path: str, rule: str, limit: str) -> str:
    field = path.rpartition(".")[2]
    remedy = f"set ' + string({limit}) + ' or less, or ask the platform team to set spec.defaults.{field}"
    return f"'spec.{path}: is not set and {rule}, and DreamBoothRuntime ' + params.metadata.name + '" + (
        f" sets the limit ' + string({limit}) + '; {remedy}'"
    )


def _not_allowed(path: str, value: str, bound: str) -> str:
    text = f"is not allowed by DreamBoothRuntime ' + params.metadata.name + '; see its spec.bounds.{bound}'"
    return f"'spec.{path}: ' + {value} + ' {text}"


def _numbers() -> list[_Rule]:
    found = [
        _rule(path, f"!has(object.spec.{path}) || object.spec.{path} <= {limit}", _exceeds(path, _value(path), limit))
        for path, limit in _NUMBERS.items()
    ]
    path, limit = "training.resolution", "params.spec.bounds.maxResolution"
    own, default = _value(path), "params.spec.defaults.resolution"
    within = f"{own} <= {limit} || (has({default}) && {own} <= {default})"
    found.append(_rule(path, f"!has({own}) || !has({limit}) || {within}", _exceeds(path, own, limit)))
    for omitted, (field, chosen, others) in _DEFAULTS.items():
        bound = _NUMBERS[omitted]
        holds = f"has({_value(omitted)}) || has(params.spec.defaults.{field}) || {chosen} <= {bound}"
        message = _omitted(omitted, f"defaults to up to ' + string({chosen}) + '", bound)
        found.append(_Rule((omitted, *others), holds, message))
    message = _omitted(path, "has a default that depends on the model", limit)
    found.append(_rule(path, f"has({own}) || !has({limit}) || has({default})", message))
    return [_where_it_applies(rule) for rule in found]


def _where_it_applies(rule: _Rule) -> _Rule:
    if rule.fields[0] == "training.steps":
        return _unless_untrained(rule)
    return _unless_disabled(rule) if rule.fields[0].startswith("priorPreservation.") else rule


def _unless_untrained(rule: _Rule) -> _Rule:
    """Methods in `WITHOUT_TRAINING` have no steps."""
    method = "training.method"
    untrained = f"(has({_value(method)}) && {_value(method)} in {list(WITHOUT_TRAINING)})"
    return _Rule((*rule.fields, method), f"{untrained} || {rule.holds}", rule.message)


def _unless_disabled(rule: _Rule) -> _Rule:
    """Bounds of class images apply only to jobs that use them.

    Methods in `WITHOUT_PRIOR` never do. Jobs with a HyperNetwork have another default mode.
    """
    mode, method, network = "priorPreservation.mode", "training.method", "training.hyperNetwork"
    without = f"has({_value(method)}) && {_value(method)} in {list(WITHOUT_PRIOR)}"
    by_mode = f"has({_value(mode)}) ? {_value(mode)} != 'Images' : has({_value(network)})"
    disabled = f"(({by_mode}) || {without})"
    return _Rule((*rule.fields, mode, method, network), f"{disabled} || {rule.holds}", rule.message)


def _rule(field: str, holds: str, message: str) -> _Rule:
    return _Rule((field,), holds, message)


def _value(path: str) -> str:
    return f"object.spec.{path}"


def _workers() -> list[_Rule]:
    limit, own, total = "params.spec.bounds.maxWorkers", "params.spec.pods.worker.gpu", "params.spec.bounds.maxGpus"
    product, workers, gpu = "variables.workers * variables.gpus", "cluster.workers", "cluster.resources.gpu"
    number = (workers, "cluster.elastic")
    return [
        _Rule(number, f"variables.workers <= {limit}", _exceeds(workers, "variables.workers", limit)),
        _rule(gpu, f"has({total}) || variables.gpus <= {own}", _exceeds(gpu, "variables.gpus", own)),
        _Rule(
            (*number, gpu),
            f"!has({total}) || {product} <= {total}",
            f"'spec.cluster: ' + string(variables.workers) + ' workers with ' + string(variables.gpus) + ' GPUs each "
            f"exceed ' + string({total}) + ' GPUs, ' + variables.by",
        ),
    ]


def _resources() -> list[_Rule]:
    found: list[_Rule] = []
    for name, limit in _RESOURCES.items():
        path = f"cluster.resources.{name}"
        value = _value(path)
        holds = f"!has({value}) || quantity({value}).compareTo(quantity({limit})) <= 0"
        found.append(_rule(path, holds, _exceeds(path, value, limit)))
    path, own = "cluster.resources.cpu", "params.spec.pods.worker.cpu"
    value = _value(path)
    least = f"quantity({value}).compareTo(quantity('{_MIN_CPU}')) >= 0 || "
    least += f"quantity({value}).compareTo(quantity({own})) >= 0"
    message = f"'spec.{path}: ' + {value} + ' is below the minimum {_MIN_CPU} of a worker'"
    return [*found, _rule(path, f"!has({value}) || {least}", message)]


def _choices() -> list[_Rule]:
    image = "object.spec.cluster.image"
    below = f"{image} == e || {image}.startsWith(e + '/') || (e.contains('/') && "
    below += f"({image}.startsWith(e + ':') || {image}.startsWith(e + '@')))"
    found = [
        _rule(
            "cluster.image",
            f"!has({image}) || {image} == params.spec.image || variables.images.exists(e, {below})",
            _not_allowed("cluster.image", image, "images"),
        ),
        _rule(
            "model",
            f"variables.model == variables.ownModel || variables.model in {_list('models')}",
            _not_allowed("model", "variables.model", "models"),
        ),
        _rule(
            "model",
            "variables.superResolution == variables.ownSuperResolution || "
            f"variables.superResolution in {_list('models')}",
            _not_allowed("model.superResolution", "variables.superResolution", "models"),
        ),
        _rule(
            "training.imagePrompt",
            f"!variables.hasAdapter || variables.adapter in {_list('models')}",
            _not_allowed("training.imagePrompt.adapter", "variables.adapter", "models"),
        ),
        _rule(
            "training.hyperNetwork",
            f"!variables.hasNetwork || variables.network in ['{BUILTIN_SPRITES}'] + {_list('models')}",
            _not_allowed("training.hyperNetwork", "variables.network", "models"),
        ),
    ]
    for name in ("priorityClassName", "workloadPriorityClassName"):
        path, default = f"runPolicy.{name}", f"params.spec.defaults.{name}"
        priority = _value(path)
        holds = f"!has({priority}) || (has({default}) && {priority} == {default}) || {priority} in {_list(f'{name}s')}"
        found.append(_rule(path, holds, _not_allowed(path, priority, f"{name}s")))
    defaults = "[" + ", ".join(f"'{encoder}'" for encoder in DEFAULT_ENCODERS) + "]"
    for name in ("dino", "clip"):
        path = f"evaluation.encoders.{name}"
        holds = f"!has({_value(path)}) || {_value(path)} in {defaults} || {_value(path)} in {_list('encoders')}"
        found.append(_rule(path, holds, _not_allowed(path, _value(path), "encoders")))
    return found


def _sources() -> list[_Rule]:
    """As `controller/bounds_sources.py`: archives on web servers are below a bound."""
    subjects = "object.spec.subjects"
    found = {"subjects": f"!has({subjects}) || {subjects}.all(s, !has(s.images.uri) || {_from_server('s.images.uri')})"}
    for path in ("subject.images", "priorPreservation.images"):
        parent, images = path.partition(".")[0], f"object.spec.{path}"
        missing = f"!has(object.spec.{parent}) || !has({images}) || !has({images}.uri)"
        found[f"{path}.uri"] = f"{missing} || {_from_server(f'{images}.uri')}"
    archive = "'an archive on a web server'"
    return [_rule(path, holds, _not_allowed(path, archive, "imageSources")) for path, holds in found.items()]


def _from_server(uri: str) -> str:
    """CEL: whether a URI is not on a web server, or below one that is allowed."""
    url = f"{uri}.split('?')[0]"
    below = f"!{url}.matches('(?i)%(2e|2f|5c)') && {_below(url, _list('imageSources'))}"
    return f"(!{uri}.startsWith('https://') || ({below}))"


def _outputs() -> list[_Rule]:
    """As `controller/bounds_outputs.py`: the job's own folder in the runtime's storage, or a folder below a bound."""
    uri, claim, path = "object.spec.output.uri", "object.spec.output.pvc.claimName", "variables.folder"
    storage, name = "params.spec.storage", "object.metadata.name"
    root = f"({storage}.uri.endsWith('/') ? {storage}.uri : {storage}.uri + '/')"
    own_uri = f"has({storage}.uri) && {uri} == {root} + object.metadata.namespace + '/' + {name}"
    own_claim = f"has({storage}.claimName) && {claim} == {storage}.claimName && {path} == {name}"
    volume = f"'{VOLUME}' + {claim} + '/' + {path}"
    return [
        _rule(
            "output.uri",
            f"!has({uri}) || ({own_uri}) || {_below(uri)}",
            _not_allowed("output.uri", uri, "outputs"),
        ),
        _rule(
            "output.pvc",
            f"!has(object.spec.output.pvc) || ({own_claim}) || {_below(f'({volume})')}",
            _not_allowed("output.pvc", volume, "outputs"),
        ),
    ]


def _below(uri: str, allowed: str = "variables.outputs") -> str:
    """CEL: whether a URI is an allowed folder or below it, and has neither empty segments nor dots as segments."""
    rest = f"{uri}.substring({uri}.indexOf('://') + 3)"
    plain = f"!{rest}.contains('//') && !{rest}.matches('(^|/)[.][.]?(/|$)')"
    inside = f"{uri} == e || {uri} + '/' == e || {uri}.startsWith(e.endsWith('/') ? e : e + '/')"
    return f"({plain} && {allowed}.exists(e, {inside}))"


def _placement() -> list[_Rule]:
    selector, tolerations = "object.spec.cluster.nodeSelector", "object.spec.cluster.tolerations"
    allowed = "params.spec.allowedNamespaces"
    own = f"k in variables.nodeSelector ? {selector}[k] == variables.nodeSelector[k]"
    fits = f"{own} : k in {_list('nodeSelectorKeys')}"
    tolerated = f"t in variables.tolerations || (has(t.key) && t.key in {_list('tolerationKeys')})"
    return [
        _rule(
            "cluster.nodeSelector",
            f"!has({selector}) || {selector}.all(k, {fits})",
            _not_allowed("cluster.nodeSelector", f"{selector}.map(k, k).join(', ')", "nodeSelectorKeys"),
        ),
        _rule(
            "cluster.tolerations",
            f"!has({tolerations}) || {tolerations}.all(t, {tolerated})",
            _not_allowed("cluster.tolerations", "'a toleration'", "tolerationKeys"),
        ),
        _Rule(
            (),
            f"!has({allowed}) || {allowed}.size() == 0 || object.metadata.namespace in {allowed}",
            "'metadata.namespace: ' + object.metadata.namespace + ' is not in spec.allowedNamespaces of "
            "DreamBoothRuntime ' + params.metadata.name",
        ),
    ]
