"""Job files are parsed as by kubectl, changed by overrides, and written back."""

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from jobtext import JOB, LoadText, spec

from dreambooth_api.errors import TransientError, UserError
from dreambooth_api.job import DreamBoothJob
from dreambooth_trainer.jobfile import dump_job
from dreambooth_trainer.jobfile.load import load_job


def test_overrides_apply_to_every_kind_of_value(load_text: LoadText) -> None:
    job = load_text(
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


def test_yaml_is_parsed_as_by_kubectl(load_text: LoadText) -> None:
    job = load_text(
        spec("""\
training:
  learningRate: 5e-6
  steps: 1e3
  globalBatchSize: 4.0
  seed: 0x10
  deepspeed: {stage: 2, config: {zero_optimization: {reduce_bucket_size: 1_000}, steps_per_print: 0o17}}
  textEncoder:
cluster: {nodeSelector: {on: 'yes', d: 2026-01-01, e: 1:30}}
""")
    )
    training = job.spec.training
    assert (training.learning_rate, training.steps, training.global_batch_size, training.seed) == (5e-6, 1000, 4, 16)
    assert training.deepspeed.stage == "2"
    assert training.deepspeed.config == {
        "zero_optimization": {"reduce_bucket_size": 1000},
        "steps_per_print": 15,
    }
    assert job.spec.cluster.node_selector == {"on": "yes", "d": "2026-01-01", "e": "1:30"}


def test_anchors_and_merge_keys_are_supported(load_text: LoadText) -> None:
    job = load_text(spec("priorPreservation: {sampler: &s {steps: 9}}\ntraining:\n  <<: *s\n  seed: 3"))
    assert (job.spec.training.steps, job.spec.training.seed) == (9, 3)


def test_a_byte_order_mark_and_crlf_are_accepted(load_text: LoadText) -> None:
    assert load_text(b"\xef\xbb\xbf" + JOB.replace("\n", "\r\n").encode()).metadata.name == "my-dog"


def test_other_documents_are_ignored_with_a_warning(load_text: LoadText, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert load_text("kind: DreamBoothRuntime\n---\n" + JOB).metadata.name == "my-dog"
    assert caplog.messages == ["job.yaml: DreamBoothRuntime (line 1) is ignored; only the DreamBoothJob is used"]


def test_local_folders_are_relative_to_the_job_file(load_text: LoadText, tmp_path: Path) -> None:
    job = load_text(spec("output: {uri: out/x}"))
    assert job.spec.subject.images.uri == str(tmp_path / "photos")
    assert job.spec.output.uri == str(tmp_path / "out/x")


def test_models_in_local_folders_are_relative_to_the_job_file(load_text: LoadText, tmp_path: Path) -> None:
    (tmp_path / "models" / "base").mkdir(parents=True)
    text = spec("model: {id: models/base}\nevaluation: {encoders: {dino: ./dino, clip: openai/clip-vit-base-patch32}}")
    job = load_text(text)
    assert job.spec.model is not None
    assert job.spec.model.id == str(tmp_path / "models" / "base")
    assert job.spec.evaluation.encoders.dino == str(tmp_path / "dino")
    assert job.spec.evaluation.encoders.clip == "openai/clip-vit-base-patch32"


@pytest.mark.parametrize(
    "model", ["runwayml/stable-diffusion-v1-5", "builtin:sprites", "x" * 3000, "'~no-such-user/x y'"]
)
def test_other_models_are_not_changed(load_text: LoadText, tmp_path: Path, model: str) -> None:
    job = load_text(spec(f"model: {{id: {model}}}"))
    assert job.spec.model is not None
    assert job.spec.model.id.removeprefix(f"{tmp_path}/") == model.strip("'")


def test_a_tilde_without_a_home_folder_is_kept(
    load_text: LoadText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert load_text(JOB.replace("photos", "~/photos")).spec.subject.images.uri == str(tmp_path / "~" / "photos")


@pytest.mark.parametrize("uri", ["s3://bucket/a b", "gs://bucket", "builtin:sprites/dog", "/data/dog", "file:///data"])
def test_urls_and_absolute_paths_are_not_changed(load_text: LoadText, uri: str) -> None:
    assert load_text(JOB.replace("photos", f"'{uri}'")).spec.subject.images.uri == uri


def test_an_output_on_the_hub_is_a_repository_of_an_owner(load_text: LoadText) -> None:
    assert load_text(spec("output: {uri: 'hf://team/my-dog_1.0'}")).spec.output.uri == "hf://team/my-dog_1.0"
    for uri in ("hf://team", "hf://team/a/b", "hf://team/a@main", "hf://../a", "hf://team/", "hf://a b/c", "hf:///a/b"):
        with pytest.raises(UserError, match=r"must be a local folder, .* or hf://owner/name"):
            load_text(spec(f"output: {{uri: '{uri}'}}"))
    with pytest.raises(UserError, match="must be a local folder"):
        load_text(JOB.replace("photos", "hf://team/photos"))


def test_a_dumped_job_is_short_and_loads_again(load_text: LoadText, tmp_path: Path) -> None:
    text = spec("training: {learningRate: 5e-6, method: LoRA}\ncluster: {nodeSelector: {b: '5e-6', c: 'on'}}")
    job = load_text(text.replace("class: dog", "class: '1e3'"))
    dumped = dump_job(job)
    assert load_text(dumped) == job
    assert dumped == (
        "apiVersion: dreambooth.dev/v1alpha1\nkind: DreamBoothJob\nmetadata:\n  name: my-dog\nspec:\n  subject:\n"
        f"    images:\n      uri: {tmp_path}/photos\n    class: '1e3'\n  training:\n    method: LoRA\n"
        "    learningRate: 5.0e-06\n  cluster:\n    nodeSelector:\n"
        "      b: '5e-6'\n      c: 'on'\n"
    )


def test_a_job_dumped_for_the_public_does_not_tell_where_the_photos_are() -> None:
    images = {"uri": "s3://private/grandma"}
    spec = {"training": {"steps": 9}, "output": {"uri": "s3://private/out", "formats": ["diffusers"]}}
    metadata = {"name": "dog", "uid": "private", "labels": {"private": "x"}, "annotations": {"last-applied": "private"}}
    head = {"apiVersion": "dreambooth.dev/v1alpha1", "kind": "DreamBoothJob", "metadata": metadata, "status": "private"}
    listed = {"class": "dog", "identifier": "zwx", "images": images, "captions": {"a.png": "a zwx dog, private"}}
    own = {"priorPreservation": {"lossWeight": 0.5, "images": {"uri": "https://private/class.zip?signature=private"}}}
    for subjects in ({"subject": listed, **own}, {"subjects": [listed]}):
        spec |= {"cluster": {"nodeSelector": {"private": "x"}}, "runtimeRef": {"name": "private"}}
        job = DreamBoothJob.model_validate({**head, "spec": {**spec, **subjects}})
        assert "private" in dump_job(job)
        dumped = yaml.safe_load(dump_job(job, public=True))
        kept: dict[str, Any] = {"class": "dog", "identifier": "zwx"}
        prior = {"priorPreservation": {"lossWeight": 0.5}}
        expected = {"subject": kept, **prior} if "subject" in subjects else {"subjects": [kept]}
        assert dumped["metadata"] == {"name": "dog"}
        assert dumped["spec"] == {**expected, "training": {"steps": 9}, "output": {"formats": ["diffusers"]}}


def test_a_job_dumped_for_the_public_names_local_models_without_their_folders() -> None:
    model = {"id": "/home/grandma/models/base", "superResolution": {"id": "/home/grandma/models/second/"}}
    spec = {
        "model": model,
        "subject": {"class": "dog", "images": {"uri": "photos"}},
        "evaluation": {"encoders": {"dino": "/home/grandma/dino", "clip": "openai/clip-vit-base-patch32"}},
    }
    head = {"apiVersion": "dreambooth.dev/v1alpha1", "kind": "DreamBoothJob", "metadata": {"name": "dog"}}
    job = DreamBoothJob.model_validate({**head, "spec": spec})
    dumped = yaml.safe_load(dump_job(job, public=True))["spec"]
    assert dumped["model"] == {"id": "base", "superResolution": {"id": "second"}}
    assert dumped["evaluation"]["encoders"] == {"dino": "dino", "clip": "openai/clip-vit-base-patch32"}
    assert yaml.safe_load(dump_job(job))["spec"]["model"] == model


def test_job_file_with_another_digest_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_job(path, sha256=digest).metadata.name == "my-dog"
    path.write_text(JOB + "\n")
    with pytest.raises(TransientError, match="is not the job file that the operator wrote"):
        load_job(path, sha256=digest)
