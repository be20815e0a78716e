"""What a user is told about a job file, sentence by sentence."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreambooth_api.errors import UserError
from dreambooth_api.job import DreamBoothJob
from dreambooth_trainer.jobfile import dump_job, load_job

JOB = """\
apiVersion: dreambooth.dev/v1alpha1
kind: DreamBoothJob
metadata:
  name: my-dog
spec:
  subject:
    images: {uri: photos}
    class: dog
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., DreamBoothJob]:
    """Load a job from its text."""

    def loader(text: str | bytes, *sets: str) -> DreamBoothJob:
        file = tmp_path / "job.yaml"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_job(file, sets)

    return loader


def spec(lines: str) -> str:
    """The valid job with more lines in its spec."""
    return JOB + "".join(f"  {line}\n" for line in lines.splitlines())


def subject(lines: str) -> str:
    """The valid job with more lines in its subject."""
    return JOB + "".join(f"    {line}\n" for line in lines.splitlines())


TOLD = {
    "an unknown key names its neighbour": (
        spec("training: {learningrat: 1e-4}"),
        "spec.training.learningrat (line 9): is not a known key; did you mean learningRate?",
    ),
    "snake_case is no key of the YAML": (
        spec("training: {learning_rate: 1e-4}"),
        "spec.training.learning_rate (line 9): is not a known key; did you mean learningRate?",
    ),
    "the wrong case is no key either": (
        spec("runpolicy: {}"),
        "spec.runpolicy (line 9): is not a known key; did you mean runPolicy?",
    ),
    "a key like no other gets the list": (
        spec("output: {zzz: 1}"),
        "spec.output.zzz (line 9): is not a known key; allowed here: uri, pvc, formats, keepCheckpoints, "
        "deletionPolicy",
    ),
    "a missing key comes with an example": (
        JOB.replace("    class: dog\n", ""),
        "spec.subject.class (line 6): is required; write for example class: dog",
    ),
    "an empty required part is a missing one": (
        "apiVersion: dreambooth.dev/v1alpha1\nkind: DreamBoothJob\nmetadata: {name: a}\nspec:\n  subject:\n",
        "spec.subject (line 4): is required; write for example subject: {images: {uri: photos/}, class: dog}",
    ),
    "an enum lists its values and knows the nearest": (
        spec("training: {method: lora}"),
        "spec.training.method (line 9): 'lora': must be one of Full, LoRA; write method: LoRA",
    ),
    "a stage that ZeRO does not have": (
        spec("training: {deepspeed: {stage: 4}}"),
        "spec.training.deepspeed.stage (line 9): '4': must be one of auto, 1, 2, 3; write stage: auto",
    ),
    "a number has a lower bound": (
        spec("training: {steps: 0}"),
        "spec.training.steps (line 9): 0: must be at least 1; write 1 or more",
    ),
    "a learning rate has an upper one, and a usual value": (
        spec("training:\n  steps: 5\n  learningRate: 1"),
        "spec.training.learningRate (line 11): 1: must be less than 1; write for example 5e-6",
    ),
    "a resolution that is no multiple of 8": (
        spec("training: {resolution: 500}"),
        "spec.training.resolution (line 9): 500: must be a multiple of 8; write 496 or 504",
    ),
    "a fraction where steps are counted": (
        spec("training: {steps: 2.5}"),
        "spec.training.steps (line 9): 2.5: must be a whole number; write 2 or 3",
    ),
    "a number in quotes": (
        spec("training: {learningRate: '5e-6'}"),
        "spec.training.learningRate (line 9): '5e-6': must be a number, not text; write a number without quotes",
    ),
    "infinity is no number": (
        spec("training: {maxGradNorm: .inf}"),
        "spec.training.maxGradNorm (line 9): '.inf': must be a number, not text; write a number without quotes",
    ),
    "`no` is a truth value in YAML": (
        JOB.replace("class: dog", "class: no"),
        "spec.subject.class (line 8): False: must be text, not true or false; write it in quotes",
    ),
    "text where a truth value goes": (
        spec("priorPreservation: {enabled: maybe}"),
        "spec.priorPreservation.enabled (line 9): 'maybe': must be true or false, not text; "
        "write true or false, without quotes",
    ),
    "one value where a list goes": (
        spec("evaluation: {prompts: 'a {}'}"),
        "spec.evaluation.prompts (line 9): 'a {}': must be a list, not text; "
        "write one item a line, each after a dash: - item",
    ),
    "one value where a mapping goes": (
        spec("training: {textEncoder: true}"),
        "spec.training.textEncoder (line 9): True: must be a mapping, not true or false; "
        "write keys below it: train, learningRate",
    ),
    "a template without the subject": (
        spec("evaluation:\n  prompts:\n  - a {} in the snow\n  - a dog"),
        "spec.evaluation.prompts[1] (line 12): 'a dog': must be one line with {} exactly once, where the subject "
        "goes, and no other braces; write for example 'a {} on the beach', in quotes",
    ),
    "thresholds that nothing measures": (
        spec("evaluation:\n  enabled: false\n  thresholds: {dino: 0.6, clipT: 0.3}"),
        "spec.evaluation.thresholds (line 11): dino and clipT cannot be checked, because enabled is false and no "
        "scores are computed; remove thresholds, or set enabled: true",
    ),
    "no format at all": (
        spec("output: {formats: []}"),
        "spec.output.formats (line 9): must not be empty; leave the key out for the default, or write a value",
    ),
    "a name that Kubernetes refuses": (
        JOB.replace("my-dog", "My_Dog"),
        "metadata.name (line 4): 'My_Dog': is not a Kubernetes name: lower-case letters, digits and -, at most 63; "
        "write for example my-dog",
    ),
    "a quantity with the unit of a shop": (
        spec("cluster: {resources: {memory: 16GB}}"),
        "spec.cluster.resources.memory (line 9): '16GB': is not a Kubernetes quantity; "
        "write for example '4', 500m or 16Gi",
    ),
    "a bucket with a slash too few": (
        JOB.replace("photos", "s3:/bucket"),
        "spec.subject.images.uri (line 7): 's3:/bucket': must be a local folder, s3://bucket/folder, "
        "gs://bucket/folder or builtin:sprites/<name>; write for example photos/",
    ),
    "nothing can be written to the built-in examples": (
        spec("output: {uri: 'builtin:sprites/dog'}"),
        "spec.output.uri (line 9): 'builtin:sprites/dog': must be a local folder, s3://bucket/folder or "
        "gs://bucket/folder; write for example out/my-dog",
    ),
    "a volume's path that leaves it": (
        spec("output: {pvc: {claimName: a, path: ../b}}"),
        "spec.output.pvc.path (line 9): '../b': must be a folder inside the volume, without a leading /, and without "
        ". or .. or hidden folders; write for example photos/dog",
    ),
    "an identifier of two words": (
        subject("identifier: sks abc"),
        "spec.subject.identifier (line 9): 'sks abc': must be one word of at most 32 characters, without braces; "
        "write for example sks, or auto",
    ),
    "a prompt without the identifier": (
        subject("instancePrompt: a dog"),
        "spec.subject.instancePrompt (line 9): 'a dog' does not contain the identifier 'sks' as a separate word; "
        "write, for example, 'a sks dog'",
    ),
    "a caption without the identifier": (
        subject("captions: {00.jpg: a dog}"),
        "spec.subject.captions[\"00.jpg\"] (line 9): 'a dog' does not contain the identifier 'sks' as a separate "
        "word; write, for example, 'a sks dog'",
    ),
    "two sources of images": (
        JOB.replace("{uri: photos}", "{uri: photos, secret: {name: a}}"),
        "spec.subject.images (line 7): sets uri and secret; set exactly one of uri, pvc, configMap, secret",
    ),
    "no source of images": (
        JOB.replace("{uri: photos}", "{}"),
        "spec.subject.images (line 7): sets nothing; set exactly one of uri, pvc, configMap, secret",
    ),
    "elastic bounds the wrong way round": (
        spec("cluster: {elastic: {minWorkers: 4, maxWorkers: 2}}"),
        "spec.cluster.elastic.maxWorkers (line 9): maxWorkers 2 is less than minWorkers 4; set maxWorkers to 4 or more",
    ),
    "an older apiVersion": (
        JOB.replace("v1alpha1", "v1"),
        "apiVersion (line 1): 'dreambooth.dev/v1': must be dreambooth.dev/v1alpha1; "
        "write apiVersion: dreambooth.dev/v1alpha1",
    ),
    "a misspelt kind": (
        JOB.replace("kind: DreamBoothJob", "kind: DreamboothJob"),
        "kind (line 2): 'DreamboothJob': must be DreamBoothJob; write kind: DreamBoothJob",
    ),
    "no kind": (
        JOB.replace("kind: DreamBoothJob\n", ""),
        "kind (line 1): is required; write for example kind: DreamBoothJob",
    ),
    "another kind altogether": (
        "apiVersion: v1\nkind: ConfigMap\n",
        "job.yaml: is a ConfigMap, not a DreamBoothJob; give the file that says kind: DreamBoothJob",
    ),
    "a runtime": (
        "kind: DreamBoothRuntime\n",
        "job.yaml: is a DreamBoothRuntime, not a DreamBoothJob; give the file that says kind: DreamBoothJob; "
        "a runtime is applied to a cluster with kubectl",
    ),
    "two jobs": (
        JOB + "---\n" + JOB,
        "job.yaml: holds 2 DreamBoothJobs: DreamBoothJob (line 1), DreamBoothJob (line 10); "
        "give each a file of its own",
    ),
    "several documents and no job": (
        "kind: A\n---\nkind: B\n",
        "job.yaml: holds no DreamBoothJob, but A (line 1), B (line 3); write kind: DreamBoothJob",
    ),
    "an empty file": (
        "",
        "job.yaml: is empty; write a job: apiVersion: dreambooth.dev/v1alpha1, kind: DreamBoothJob, ...",
    ),
    "only a comment": (
        "# to do\n---\n",
        "job.yaml: is empty; write a job: apiVersion: dreambooth.dev/v1alpha1, kind: DreamBoothJob, ...",
    ),
    "a list": (
        "- 1\n",
        "job.yaml (line 1): must be a mapping, not a list; "
        "write keys below it: apiVersion, kind, metadata, spec, status",
    ),
    "a key twice": (
        spec("training:\n  steps: 1\n  seed: 2\n  steps: 3"),
        "job.yaml (line 12): the key 'steps' is on line 10 already; keep one of the two",
    ),
    "a bracket left open": (
        "spec: [1, 2\n",
        "job.yaml (line 2, column 1): is not YAML: while parsing a flow sequence expected ',' or ']', "
        "but got '<stream end>'; check indentation, colons and quotes there",
    ),
    "a tab": (
        "spec:\n\tsubject: 1\n",
        "job.yaml (line 2, column 1): has a tab where YAML wants spaces; indent with spaces",
    ),
    "a Python object": (
        "spec: !!python/object/apply:os.system [ls]\n",
        "job.yaml (line 1, column 7): is not YAML: the tag 'tag:yaml.org,2002:python/object/apply:os.system' "
        "is not used here; check indentation, colons and quotes there",
    ),
    "Latin-1": (
        b"kind: caf\xe9\n",
        "is not UTF-8 text: byte 9 is 0xe9; save it as UTF-8, or give the YAML file",
    ),
    "a control character": (
        "kind: \x00\n",
        "job.yaml: has characters that YAML does not allow; save it as plain UTF-8 text",
    ),
    "aliases that unfold without end": (
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)),
        "has more than 100,000 values or 100 levels; write the values out, without aliases (*name)",
    ),
    "an alias inside itself": (
        "a: &a [*a]\n",
        "has more than 100,000 values or 100 levels; write the values out, without aliases (*name)",
    ),
    "brackets without end": (
        "[" * 1000,
        "job.yaml: is nested too deeply; give the job file itself",
    ),
}


@pytest.mark.parametrize("text, sentence", TOLD.values(), ids=TOLD)
def test_a_fault_is_told(load: Callable[..., DreamBoothJob], text: str | bytes, sentence: str) -> None:
    with pytest.raises(UserError) as told:
        load(text)
    assert len(told.value.issues) == 1
    assert str(told.value).endswith(sentence)


SETS = {
    "no equals sign": (
        "training.steps",
        "--set training.steps: has no key=value; write for example --set training.steps=200",
    ),
    "no such key": (
        "training.stepz=1",
        "--set training.stepz=1: stepz is not a known key; did you mean steps?",
    ),
    "a path through a number": (
        "training.steps.x=1",
        "--set training.steps.x=1: training.steps has no keys below it; write --set training.steps=VALUE",
    ),
    "a value that is no YAML": (
        "subject.class={",
        "the value is not YAML: while parsing a flow node expected the node content, but found '<stream end>'; "
        "quote it, as in --set 'subject.class=\"dog\"'",
    ),
    "a value that breaks a rule": (
        "training.steps=0",
        "spec.training.steps (--set training.steps=0): 0: must be at least 1; write 1 or more",
    ),
}


@pytest.mark.parametrize("override, sentence", SETS.values(), ids=SETS)
def test_a_bad_override_is_told(load: Callable[..., DreamBoothJob], override: str, sentence: str) -> None:
    with pytest.raises(UserError) as told:
        load(JOB, override)
    assert str(told.value).endswith(sentence)


def test_overrides_reach_every_kind_of_value(load: Callable[..., DreamBoothJob]) -> None:
    job = load(
        spec("training: {steps: 9}"),
        "training.learningRate=5e-6",
        "spec.training.steps=",
        "evaluation.prompts=['a {} in the snow']",
        "subject.captions.00.jpg=a sks dog sitting",
        "training.deepspeed.config.zero_optimization.reduce_bucket_size=1000",
        "runPolicy.suspend=true",
        "training.seed=1",
        "training.seed=2",
    )
    assert job.spec.training.learning_rate == 5e-6
    assert job.spec.training.steps is None
    assert job.spec.evaluation.prompts == ["a {} in the snow"]
    assert job.spec.subject.captions == {"00.jpg": "a sks dog sitting"}
    assert job.spec.training.deepspeed.config == {"zero_optimization": {"reduce_bucket_size": 1000}}
    assert job.spec.run_policy.suspend
    assert job.spec.training.seed == 2


def test_all_faults_come_at_once(load: Callable[..., DreamBoothJob]) -> None:
    with pytest.raises(UserError) as told:
        load(
            spec(
                "training: {steps: 0, methd: Full}\noutput: {uri: a, pvc: {claimName: X}}\n"
                "priorPreservation: {lossWeight: 0}"
            )
        )
    assert {issue.path for issue in told.value.issues} == {
        "spec.training.steps",
        "spec.training.methd",
        "spec.output.pvc.claimName",
        "spec.priorPreservation.lossWeight",
    }


def test_yaml_reads_as_kubectl_reads_it(load: Callable[..., DreamBoothJob]) -> None:
    job = load(
        spec("""\
training:
  learningRate: 5e-6
  steps: 1e3
  globalBatchSize: 4.0
  seed: 0x10
  deepspeed: {stage: 2, config: {a: 1_000, b: 0o17, c: null, d: 2026-01-01, e: 1:30, f: 1.5}}
  textEncoder:
cluster: {nodeSelector: {on: 'yes'}}
""")
    )
    training = job.spec.training
    assert (training.learning_rate, training.steps, training.global_batch_size, training.seed) == (5e-6, 1000, 4, 16)
    assert training.deepspeed.stage == "2"
    assert training.deepspeed.config == {"a": 1000, "b": 15, "c": None, "d": "2026-01-01", "e": "1:30", "f": 1.5}
    assert job.spec.cluster.node_selector == {"on": "yes"}


def test_anchors_and_merge_keys_work(load: Callable[..., DreamBoothJob]) -> None:
    job = load(spec("priorPreservation: {sampler: &s {steps: 9}}\ntraining:\n  <<: *s\n  seed: 3"))
    assert (job.spec.training.steps, job.spec.training.seed) == (9, 3)


def test_a_byte_order_mark_and_crlf_are_fine(load: Callable[..., DreamBoothJob]) -> None:
    assert load(b"\xef\xbb\xbf" + JOB.replace("\n", "\r\n").encode()).metadata.name == "my-dog"


def test_other_documents_are_told_about(load: Callable[..., DreamBoothJob], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert load("kind: DreamBoothRuntime\n---\n" + JOB).metadata.name == "my-dog"
    assert caplog.messages == ["job.yaml: DreamBoothRuntime (line 1) is not read here; only the DreamBoothJob is"]


def test_local_folders_are_relative_to_the_job_file(load: Callable[..., DreamBoothJob], tmp_path: Path) -> None:
    job = load(spec("output: {uri: out/x}"))
    assert job.spec.subject.images.uri == str(tmp_path / "photos")
    assert job.spec.output.uri == str(tmp_path / "out/x")


@pytest.mark.parametrize("uri", ["s3://bucket/a b", "gs://bucket", "builtin:sprites/dog", "/data/dog", "file:///data"])
def test_other_places_stay_as_they_are(load: Callable[..., DreamBoothJob], uri: str) -> None:
    assert load(JOB.replace("photos", f"'{uri}'")).spec.subject.images.uri == uri


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    with pytest.raises(UserError) as told:
        load_job(tmp_path / "jobs.yaml")
    assert str(told.value) == f"{tmp_path}/jobs.yaml: does not exist; did you mean {tmp_path}/job.yaml?"
    with pytest.raises(UserError, match="is a folder; give the path of a job file in it"):
        load_job(tmp_path)


def test_a_dumped_job_is_short_and_loads_again(load: Callable[..., DreamBoothJob], tmp_path: Path) -> None:
    text = spec("training: {learningRate: 5e-6, method: LoRA, deepspeed: {config: {a: null, b: '5e-6', c: 'on'}}}")
    job = load(text.replace("class: dog", "class: '1e3'"))
    dumped = dump_job(job)
    assert load(dumped) == job
    assert dumped == (
        "apiVersion: dreambooth.dev/v1alpha1\nkind: DreamBoothJob\nmetadata:\n  name: my-dog\nspec:\n  subject:\n"
        f"    images:\n      uri: {tmp_path}/photos\n    class: '1e3'\n  training:\n    method: LoRA\n"
        "    learningRate: 5.0e-06\n    deepspeed:\n      config:\n"
        "        a: null\n        b: '5e-6'\n        c: 'on'\n"
    )


FULL: dict[str, Any] = yaml.safe_load(
    spec("""\
training: {steps: 5, learningRate: 0.001, deepspeed: {stage: auto, config: {a: [1]}}, textEncoder: {train: true}}
priorPreservation: {numClassImages: 9, sampler: {steps: 3}}
evaluation: {prompts: ['a {} x', '{} y'], thresholds: {dino: 0.5}}
output: {uri: out, formats: [diffusers]}
cluster: {workers: 2, resources: {cpu: '4'}, nodeSelector: {a: b}, tolerations: [{key: x}]}
runPolicy: {queueName: q}
""")
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["{}", "auto", "1e9", "a/../b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)


@given(place=st.sampled_from(places(FULL)), new=ANYTHING, key=st.none() | st.text(max_size=8))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_a_job_is_accepted_or_told(
    load: Callable[..., DreamBoothJob], place: tuple[Any, ...], new: Any, key: str | None
) -> None:
    document = copy.deepcopy({"root": FULL})
    *above, last = ("root", *place)
    here: Any = document
    for part in above:
        here = here[part]
    if key is not None and isinstance(here[last], dict):
        here[last][key] = new
    else:
        here[last] = new
    text = yaml.safe_dump(document["root"], allow_unicode=True)
    try:
        job = load(text)
    except UserError as error:
        assert error.issues
        assert all(issue.path and issue.rule and issue.remedy for issue in error.issues)
    else:
        assert load(dump_job(job)) == job


@given(st.text() | st.binary())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_at_all_is_told(load: Callable[..., DreamBoothJob], text: str | bytes) -> None:
    with pytest.raises(UserError):
        load(text)


@given(st.text(max_size=30))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_override_is_accepted_or_told(load: Callable[..., DreamBoothJob], text: str) -> None:
    for override in (text, f"training.{text}", f"subject.class={text}", f"training.deepspeed.config={text}"):
        try:
            load(JOB, override)
        except UserError as error:
            assert error.issues


@pytest.mark.parametrize("levels", [8, 9, 90, 150, 1500, 20_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}")])
def test_a_configuration_nested_too_deeply_is_a_fault(
    load: Callable[..., DreamBoothJob], levels: int, opening: str, closing: str
) -> None:
    text = spec(f"training: {{deepspeed: {{config: {{a: {opening * (levels - 1)}1{closing * (levels - 1)}}}}}}}")
    if levels == 8:
        assert load(text).spec.training.deepspeed.config
        return
    with pytest.raises(UserError) as error:
        load(text)
    if levels <= 90:
        issue = "spec.training.deepspeed.config (line 9): is nested deeper than 8 levels; use DeepSpeed's own keys"
        assert issue in str(error.value)
    else:
        assert "job.yaml" in str(error.value)
        assert "nested too deeply" in str(error.value) or "100 levels" in str(error.value)
