"""Errors in job files and overrides, with their exact messages."""

from pathlib import Path

import pytest
from jobtext import JOB, LoadText, spec, subject

from dreambooth_api.errors import UserError
from dreambooth_trainer.jobfile import load_job

ERRORS = {
    "an unknown key gets a suggestion": (
        spec("training: {learningrat: 1e-4}"),
        "spec.training.learningrat (line 9): is not a known key; did you mean learningRate?",
    ),
    "a key in snake_case": (
        spec("training: {learning_rate: 1e-4}"),
        "spec.training.learning_rate (line 9): is not a known key; did you mean learningRate?",
    ),
    "a key in the wrong case": (
        spec("runpolicy: {}"),
        "spec.runpolicy (line 9): is not a known key; did you mean runPolicy?",
    ),
    "a key without a similar one gets the list": (
        spec("output: {zzz: 1}"),
        "spec.output.zzz (line 9): is not a known key; allowed keys: uri, pvc, formats, select, "
        "keepCheckpoints, deletionPolicy",
    ),
    "a missing key gets an example": (
        JOB.replace("    class: dog\n", ""),
        "spec.subject.class (line 6): is required; add, for example, class: dog",
    ),
    "a required object without content": (
        "apiVersion: dreambooth.dev/v1alpha1\nkind: DreamBoothJob\nmetadata: {name: a}\nspec:\n  subject:\n",
        "spec (line 4): sets nothing; set exactly one of subject, subjects, for example subject: {images: "
        "{uri: photos/}, class: dog}",
    ),
    "an invalid enum value gets a suggestion": (
        spec("training: {method: lora}"),
        "spec.training.method (line 9): 'lora': must be one of Full, LoRA, DoRA, TextualInversion, PivotalTuning, "
        "None; write method: LoRA",
    ),
    "a stage that ZeRO does not have": (
        spec("training: {deepspeed: {stage: 4}}"),
        "spec.training.deepspeed.stage (line 9): '4': must be one of auto, 1, 2, 3; write stage: auto",
    ),
    "a number below its minimum": (
        spec("training: {steps: 0}"),
        "spec.training.steps (line 9): 0: must be at least 1; write 1 or more",
    ),
    "a learning rate above its maximum": (
        spec("training:\n  steps: 5\n  learningRate: 1"),
        "spec.training.learningRate (line 11): 1: must be less than 1; write a value such as 5e-6",
    ),
    "a resolution that is not a multiple of 8": (
        spec("training: {resolution: 500}"),
        "spec.training.resolution (line 9): 500: must be a multiple of 8; write 496 or 504",
    ),
    "a fraction in place of an integer": (
        spec("training: {steps: 2.5}"),
        "spec.training.steps (line 9): 2.5: must be an integer; write 2 or 3",
    ),
    "a number in quotes": (
        spec("training: {learningRate: '5e-6'}"),
        "spec.training.learningRate (line 9): '5e-6': must be a number, not a string; write a number without quotes",
    ),
    "infinity is not a number": (
        spec("training: {maxGradNorm: .inf}"),
        "spec.training.maxGradNorm (line 9): '.inf': must be a number, not a string; write a number without quotes",
    ),
    "`no` is a Boolean in YAML": (
        JOB.replace("class: dog", "class: no"),
        "spec.subject.class (line 8): False: must be a string, not a Boolean; write it in quotes",
    ),
    "a string in place of a Boolean": (
        spec("evaluation: {enabled: maybe}"),
        "spec.evaluation.enabled (line 9): 'maybe': must be true or false, not a string; "
        "write true or false, without quotes",
    ),
    "a string in place of a list": (
        spec("evaluation: {prompts: 'a {}'}"),
        "spec.evaluation.prompts (line 9): 'a {}': must be a list, not a string; "
        "write one item per line, each after a dash: - item",
    ),
    "a Boolean in place of a mapping": (
        spec("training: {textEncoder: true}"),
        "spec.training.textEncoder (line 9): True: must be a mapping, not a Boolean; "
        "write a mapping with the keys train, learningRate",
    ),
    "a template without the subject": (
        spec("evaluation:\n  prompts:\n  - a {} in the snow\n  - a dog"),
        "spec.evaluation.prompts[1] (line 12): 'a dog': must be a single line that contains {} once, as the "
        "placeholder of the subject, and no other braces; write, for example, 'a {} on the beach', in quotes",
    ),
    "thresholds without an evaluation": (
        spec("evaluation:\n  enabled: false\n  thresholds: {dino: 0.6, clipT: 0.3}"),
        "spec.evaluation.thresholds (line 11): dino and clipT cannot be checked, because enabled is false and no "
        "scores are computed; remove thresholds, or set enabled: true",
    ),
    "an empty list of formats": (
        spec("output: {formats: []}"),
        "spec.output.formats (line 9): must not be empty; set a value, or omit the key to use the default",
    ),
    "a name that Kubernetes rejects": (
        JOB.replace("my-dog", "My_Dog"),
        "metadata.name (line 4): 'My_Dog': must be a Kubernetes name: at most 63 lowercase letters, digits and "
        "hyphens; write, for example, my-dog",
    ),
    "a quantity with a decimal unit": (
        spec("cluster: {resources: {memory: 16GB}}"),
        "spec.cluster.resources.memory (line 9): '16GB': must be a Kubernetes quantity; "
        "write, for example, '4', 500m or 16Gi",
    ),
    "a bucket URL with a missing slash": (
        JOB.replace("photos", "s3:/bucket"),
        "spec.subject.images.uri (line 7): 's3:/bucket': must be a local folder, s3://bucket/folder, "
        "gs://bucket/folder, https://host/photos.zip or builtin:sprites/<name>; write, for example, photos/",
    ),
    "an adapter of method Full": (
        spec("output: {formats: [diffusers, lora]}"),
        "spec.output.formats (line 9): contains lora, which method Full does not publish; remove lora, or set "
        "training.method: LoRA or DoRA or PivotalTuning",
    ),
    "settings of another method": (
        spec("training: {method: Full, lora: {rank: 4}}"),
        "spec.training.lora (line 9): does not apply to method Full; remove lora, or set method: LoRA or DoRA or "
        "PivotalTuning",
    ),
    "a single file with new tokens": (
        spec("training: {method: TextualInversion}\noutput: {formats: [safetensors]}"),
        "spec.output.formats (line 10): contains safetensors, which method TextualInversion does not publish; remove "
        "safetensors, or set training.method: Full or LoRA or DoRA",
    ),
    "an adapter without the tokens that it was trained with": (
        spec("training: {method: PivotalTuning}\noutput: {formats: [lora]}"),
        "spec.output.formats (line 10): the adapter and the tokens of method PivotalTuning need each other, and it "
        "contains only lora; add embeddings, or remove lora",
    ),
    "too many validations": (
        spec("training: {steps: 1001, validation: {prompts: ['a {}'], everySteps: 10}}"),
        "spec.training.validation.everySteps (line 9): 10 gives more than 100 validations in 1001 steps; set 11 or "
        "more",
    ),
    "the best step without validations": (
        spec("output: {select: Best}"),
        "spec.output.select (line 9): is Best, which is selected by the scores of validations, and there are none; set "
        "training.validation, for example {prompts: ['a {} on the beach'], everySteps: 100}; or remove select",
    ),
    "the best step of a method without steps": (
        spec("training: {method: None}\noutput: {select: Best}"),
        "spec.output.select (line 10): is Best, but method None trains no steps to select from; remove select, or set "
        "another training.method",
    ),
    "the best step without scores": (
        spec(
            "training: {validation: {prompts: ['a {}'], everySteps: 10}}\nevaluation: {enabled: false}\n"
            "output: {select: Best}"
        ),
        "spec.output.select (line 11): is Best, which is selected by the scores of validations, and evaluation.enabled "
        "is false; set evaluation.enabled: true, or remove select",
    ),
    "patience for the last step": (
        spec("training: {validation: {prompts: ['a {}'], everySteps: 10, patience: 3}}\noutput: {select: Last}"),
        "spec.training.validation (line 9): sets patience, which applies only to output.select: Best; set "
        "output.select: Best, or remove patience",
    ),
    "a tracker twice": (
        spec("training: {reportTo: [wandb, mlflow, wandb]}"),
        "spec.training.reportTo (line 9): contains wandb more than once; list each tracker once",
    ),
    "preservation for new tokens": (
        spec("training: {method: TextualInversion}\npriorPreservation: {mode: Bound}"),
        "spec.priorPreservation.mode (line 10): method TextualInversion does not change the model's weights, so "
        "prior preservation does not apply; remove mode, or set training.method: LoRA",
    ),
    "class images for a mode without them": (
        spec("priorPreservation: {mode: Prediction, numClassImages: 9}"),
        "spec.priorPreservation.numClassImages (line 9): does not apply to mode Prediction; remove numClassImages, or "
        "set mode: Images",
    ),
    "a weight without a loss": (
        spec("priorPreservation: {mode: None, lossWeight: 2}"),
        "spec.priorPreservation.lossWeight (line 9): does not apply to mode None; remove lossWeight, or set mode: "
        "Images or Prediction or Bound",
    ),
    "a trained text encoder with new tokens": (
        spec("training: {method: TextualInversion, textEncoder: {train: true}}"),
        "spec.training.textEncoder.train (line 9): method TextualInversion trains new tokens only, not the weights of "
        "the text encoder; remove train, or set method: LoRA",
    ),
    "settings of a training without one": (
        spec("training: {method: None, steps: 5, learningRate: 0.1}"),
        "spec.training.steps (line 9): method None trains nothing, so steps and learningRate do not apply; remove "
        "steps and learningRate, or set another method",
    ),
    "an adapter of another method": (
        spec("training: {method: LoRA, imagePrompt: {scale: 0.5}}"),
        "spec.training.imagePrompt (line 9): does not apply to method LoRA; remove imagePrompt, or set method: None",
    ),
    "a complete model of the image-prompt adapter": (
        spec("training: {method: None}\noutput: {formats: [diffusers]}"),
        "spec.output.formats (line 10): contains diffusers, which method None does not publish; remove diffusers, or "
        "set training.method: Full or LoRA or DoRA or TextualInversion or PivotalTuning",
    ),
    "output to the built-in subjects": (
        spec("output: {uri: 'builtin:sprites/dog'}"),
        "spec.output.uri (line 9): 'builtin:sprites/dog': must be a local folder, s3://bucket/folder, "
        "gs://bucket/folder or hf://owner/name; write, for example, out/my-dog",
    ),
    "a path outside the volume": (
        spec("output: {pvc: {claimName: a, path: ../b}}"),
        "spec.output.pvc.path (line 9): '../b': must be a folder in the volume: a relative path without '.', '..' or "
        "hidden folders; write, for example, photos/dog",
    ),
    "an identifier of two words": (
        subject("identifier: sks abc"),
        "spec.subject.identifier (line 9): 'sks abc': must be a single word of at most 32 characters without braces; "
        "write, for example, sks, or auto",
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
    "a prompt in which the identifier is part of a word": (
        subject("instancePrompt: a sksy dog"),
        "spec.subject.instancePrompt (line 9): 'a sksy dog' does not contain the identifier 'sks' as a separate word; "
        "write, for example, 'a sks dog'",
    ),
    "an identifier that is a word of the class": (
        JOB.replace("class: dog", "class: toy Dog") + "    identifier: dog\n",
        "spec.subject.identifier (line 9): 'dog' is a word of the class 'toy Dog', so prompts cannot tell the two "
        "apart; set a rare word, for example identifier: sks, or auto",
    ),
    "a class prompt with the identifier": (
        spec("priorPreservation: {classPrompt: a sks dog}"),
        "spec.priorPreservation.classPrompt (line 9): 'a sks dog' contains the identifier 'sks', so class images would "
        "be images of the subject; write, for example, 'a dog'",
    ),
    "a DeepSpeed configuration that replaces ZeRO": (
        spec("training: {deepspeed: {config: {zero_optimization: 2}}}"),
        "spec.training.deepspeed.config.zero_optimization (line 9): must be a mapping; set training.deepspeed.stage "
        "instead",
    ),
    "two sources of images": (
        JOB.replace("{uri: photos}", "{uri: photos, secret: {name: a}}"),
        "spec.subject.images (line 7): sets uri and secret; set exactly one of uri, pvc, configMap, secret",
    ),
    "no source of images": (
        JOB.replace("{uri: photos}", "{}"),
        "spec.subject.images (line 7): sets nothing; set exactly one of uri, pvc, configMap, secret",
    ),
    "maxWorkers below minWorkers": (
        spec("cluster: {elastic: {minWorkers: 4, maxWorkers: 2}}"),
        "spec.cluster.elastic.maxWorkers (line 9): maxWorkers 2 is less than minWorkers 4; set maxWorkers to 4 or more",
    ),
    "an older apiVersion": (
        JOB.replace("v1alpha1", "v1"),
        "apiVersion (line 1): 'dreambooth.dev/v1': must be dreambooth.dev/v1alpha1; "
        "write apiVersion: dreambooth.dev/v1alpha1",
    ),
    "a misspelled kind": (
        JOB.replace("kind: DreamBoothJob", "kind: DreamboothJob"),
        "kind (line 2): 'DreamboothJob': must be DreamBoothJob; write kind: DreamBoothJob",
    ),
    "no kind": (
        JOB.replace("kind: DreamBoothJob\n", ""),
        "kind (line 1): is required; add, for example, kind: DreamBoothJob",
    ),
    "another kind": (
        "apiVersion: v1\nkind: ConfigMap\n",
        "job.yaml: is a ConfigMap, not a DreamBoothJob; pass a file with kind: DreamBoothJob",
    ),
    "a runtime": (
        "kind: DreamBoothRuntime\n",
        "job.yaml: is a DreamBoothRuntime, not a DreamBoothJob; pass a file with kind: DreamBoothJob; "
        "apply a runtime to a cluster with kubectl",
    ),
    "a local runtime": (
        "kind: LocalDreamBoothRuntime\n",
        "job.yaml: is a LocalDreamBoothRuntime, not a DreamBoothJob; pass a file with kind: DreamBoothJob; "
        "apply a runtime to a cluster with kubectl",
    ),
    "two jobs": (
        JOB + "---\n" + JOB,
        "job.yaml: contains 2 DreamBoothJobs: DreamBoothJob (line 1), DreamBoothJob (line 10); "
        "write each job to a separate file",
    ),
    "several documents and no job": (
        "kind: A\n---\nkind: B\n",
        "job.yaml: contains no DreamBoothJob, but A (line 1), B (line 3); set kind: DreamBoothJob",
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
        "write a mapping with the keys apiVersion, kind, metadata, spec, status",
    ),
    "a duplicate key": (
        spec("training:\n  steps: 1\n  seed: 2\n  steps: 3"),
        "job.yaml (line 12): duplicate key 'steps', first set on line 10; remove one of the two",
    ),
    "an unclosed bracket": (
        "spec: [1, 2\n",
        "job.yaml (line 2, column 1): is not valid YAML: while parsing a flow sequence expected ',' or ']', "
        "but got '<stream end>'; check indentation, colons and quotes",
    ),
    "a tab": (
        "spec:\n\tsubject: 1\n",
        "job.yaml (line 2, column 1): is indented with a tab; indent with spaces",
    ),
    "a Python object": (
        "spec: !!python/object/apply:os.system [ls]\n",
        "job.yaml (line 1, column 7): is not valid YAML: the tag 'tag:yaml.org,2002:python/object/apply:os.system' "
        "is not supported; check indentation, colons and quotes",
    ),
    "Latin-1": (
        b"kind: caf\xe9\n",
        "is not UTF-8 text: byte 9 is 0xe9; save the file as UTF-8",
    ),
    "a control character": (
        "kind: \x00\n",
        "job.yaml: contains characters that YAML does not allow; save it as UTF-8 text",
    ),
    "aliases that expand exponentially": (
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)),
        "has more than 100,000 values or 100 levels; replace aliases (*name) by their values",
    ),
    "a recursive alias": (
        "a: &a [*a]\n",
        "has more than 100,000 values or 100 levels; replace aliases (*name) by their values",
    ),
    "deeply nested brackets": (
        "[" * 1000,
        "job.yaml: is nested too deeply; pass a job file",
    ),
}


@pytest.mark.parametrize("text, message", ERRORS.values(), ids=ERRORS)
def test_an_error_is_reported(load_text: LoadText, text: str | bytes, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_text(text)
    assert len(caught.value.issues) == 1
    assert str(caught.value).endswith(message)


SETS = {
    "no equals sign": (
        "training.steps",
        "--set training.steps: is not KEY=VALUE; write, for example, --set training.steps=200",
    ),
    "no such key": (
        "training.stepz=1",
        "--set training.stepz=1: stepz is not a known key; did you mean steps?",
    ),
    "a path through a number": (
        "training.steps.x=1",
        "--set training.steps.x=1: training.steps has no keys below it; use --set training.steps=VALUE",
    ),
    "a value that is not valid YAML": (
        "subject.class={",
        "the value is not valid YAML: while parsing a flow node expected the node content, but found '<stream end>'; "
        "quote it, for example --set 'subject.class=\"dog\"'",
    ),
    "a value that breaks a rule": (
        "training.steps=0",
        "spec.training.steps (--set training.steps=0): 0: must be at least 1; write 1 or more",
    ),
}


def test_an_issue_of_an_object_names_the_override_that_set_it(load_text: LoadText) -> None:
    override = "training.deepspeed.config.train_batch_size=7"
    with pytest.raises(UserError) as caught:
        load_text(spec("training: {steps: 7}"), override)
    assert str(caught.value).startswith(f"spec.training.deepspeed.config (--set {override}): the plan sets")


@pytest.mark.parametrize("override, message", SETS.values(), ids=SETS)
def test_an_error_in_an_override_is_reported(load_text: LoadText, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_text(JOB, override)
    assert str(caught.value).endswith(message)


def test_all_errors_are_reported_at_once(load_text: LoadText) -> None:
    with pytest.raises(UserError) as caught:
        load_text(
            spec(
                "training: {steps: 0, methd: Full}\noutput: {uri: a, pvc: {claimName: X}}\n"
                "priorPreservation: {lossWeight: 0}"
            )
        )
    assert {issue.path for issue in caught.value.issues} == {
        "spec.training.steps",
        "spec.training.methd",
        "spec.output.pvc.claimName",
        "spec.priorPreservation.lossWeight",
    }


@pytest.mark.parametrize(
    ("config", "rule", "remedy"),
    [
        (
            "{train_batch_size: 7}",
            "the plan sets train_batch_size;",
            "remove train_batch_size, and set training.globalBatchSize instead",
        ),
        (
            "{fp16: {enabled: true}, zero_optimization: {stage: 3}}",
            "the plan sets fp16 and zero_optimization.stage;",
            "remove fp16, zero_optimization.stage, and set training.precision, training.deepspeed.stage instead",
        ),
        ("{checkpoint: {}}", "the plan sets checkpoint;", "remove checkpoint; "),
        (
            "{flops_profiler: {enabled: true, output_file: /etc/x}, csv_monitor: {output_path: /tmp}, amp: {}}",
            "the plan sets amp; flops_profiler.output_file and csv_monitor.output_path cannot be set here;",
            "remove amp, flops_profiler.output_file, csv_monitor.output_path, and set training.precision instead",
        ),
        (
            "{zero_optimization: {offload_param: {nvme_path: /x}}}",
            "zero_optimization.offload_param.nvme_path",
            "remove",
        ),
        ("{zero_optimization.stage: 3}", "'zero_optimization.stage' cannot be set here", "remove"),
        ("{flops_profiler: {enabled: {output_file: /x}}}", "flops_profiler.enabled.output_file cannot", "remove"),
        (
            "{tensorboard: {}, new_key: [1]}",
            "tensorboard and new_key cannot be set here",
            "remove tensorboard, new_key",
        ),
        (
            "{flops_profiler: {enabled: /x, top_modules: true}, communication_data_type: /x}",
            "flops_profiler.enabled must be true or false; flops_profiler.top_modules must be a number, 0 or more; "
            "communication_data_type must be one of fp32, fp16, bf16;",
            "",
        ),
    ],
)
def test_deepspeed_keys_that_contradict_the_job_are_rejected(
    load_text: LoadText, config: str, rule: str, remedy: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_text(spec(f"training: {{deepspeed: {{config: {config}}}}}"))
    message = str(caught.value)
    assert message.startswith(f"spec.training.deepspeed.config (line 9): {rule}")
    assert remedy in message
    assert "keys that can be set here: zero_optimization.overlap_comm, " in message


def test_other_deepspeed_keys_are_accepted(load_text: LoadText) -> None:
    config = (
        "{flops_profiler: {enabled: true}, zero_optimization: {reduce_bucket_size: 5, offload_param: {device: cpu}}}"
    )
    assert load_text(spec(f"training: {{deepspeed: {{config: {config}}}}}")).spec.training.deepspeed.config


def test_a_missing_file_gets_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    with pytest.raises(UserError) as caught:
        load_job(tmp_path / "jobs.yaml")
    assert str(caught.value) == f"{tmp_path}/jobs.yaml: does not exist; did you mean {tmp_path}/job.yaml?"
    with pytest.raises(UserError, match="is a folder; pass the path of a job file in it"):
        load_job(tmp_path)


@pytest.mark.parametrize("levels", [8, 9, 90, 150, 1500, 20_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}")])
def test_a_config_that_is_nested_too_deeply_is_rejected(
    load_text: LoadText, levels: int, opening: str, closing: str
) -> None:
    text = spec(f"training: {{deepspeed: {{config: {{a: {opening * (levels - 1)}1{closing * (levels - 1)}}}}}}}")
    with pytest.raises(UserError) as error:
        load_text(text)
    if levels == 8:
        assert "nested" not in str(error.value)
    elif levels <= 90:
        issue = "spec.training.deepspeed.config (line 9): is nested deeper than 8 levels; use DeepSpeed's own keys"
        assert issue in str(error.value)
    else:
        assert "job.yaml" in str(error.value)
        assert "nested too deeply" in str(error.value) or "100 levels" in str(error.value)
