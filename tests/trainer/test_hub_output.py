"""A repository on the Hub as the output of a job: claiming, publishing and erasing it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from click.testing import CliRunner
from hubserver import Failure, Hub, Repository

from dreambooth_api import environment
from dreambooth_api.errors import TransientError, UserError
from dreambooth_api.job import DreamBoothJob
from dreambooth_trainer.cli.erase import erase
from dreambooth_trainer.phases.publish import upload
from dreambooth_trainer.planning.plan import SamplerSettings
from dreambooth_trainer.store.claim import claim_output, output_issues
from dreambooth_trainer.store.erase import Erased, erase_job
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.hub_output import claim_repository
from dreambooth_trainer.store.owner import owner_of
from dreambooth_trainer.store.published import MANIFEST, ModelManifest, sha256

URI = "hf://team/my-dog"
NEW = "team/my-dog"
MARKER = ".dreambooth.json"


@pytest.fixture(autouse=True)
def _token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", hub.writer)
    # Weights go by LFS. The local Hub does not speak the protocol of Xet.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def job(name: str = "my-dog", uid: str = "") -> DreamBoothJob:
    return DreamBoothJob.model_validate(
        {
            "apiVersion": "dreambooth.dev/v1alpha1",
            "kind": "DreamBoothJob",
            "metadata": {"name": name, "uid": uid},
            "spec": {"subject": {"class": "dog", "images": {"uri": "photos"}}, "output": {"uri": URI}},
        }
    )


class Silent:
    def total(self, count: int) -> None: ...

    def done(self, count: int, **facts: object) -> None: ...


def publish(folder: Path, own: DreamBoothJob, **files: str) -> None:
    """Publish a model with these files. Dots in names are written as _."""
    folder.mkdir(exist_ok=True)
    contents = {name.replace("_", "."): text for name, text in files.items()}
    for name, text in contents.items():
        (folder / name).write_text(text)
    manifest = ModelManifest(
        job=owner_of(own),
        files={name: sha256(folder / name) for name in contents},
        base_model="builtin:sprites",
        base_digest="",
        instance_prompts=("a sks dog",),
        class_prompts=("a dog",),
        resolution=32,
        sampler=SamplerSettings(steps=1, guidance_scale=1),
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(by_alias=True))
    upload(folder, manifest, URI, own, Silent())


def test_a_new_repository_is_private_and_the_model_one_commit(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="dreambooth_trainer")
    claim_output(job(), JobFolder(tmp_path / "out"))
    repository = hub.repositories[NEW]
    assert repository.private
    assert repository.files.keys() == {".gitattributes", MARKER}
    publish(tmp_path / "model", job(), README_md="# Dog", unet_safetensors="weights")
    assert repository.commits == [
        "Reserve for the DreamBoothJob my-dog",
        "Publish the model of the DreamBoothJob my-dog",
    ]
    assert repository.files["unet.safetensors"] == b"weights"
    assert repository.files["README.md"] == b"# Dog"
    assert json.loads(repository.files[MANIFEST])["job"]["name"] == "my-dog"
    assert hub.objects, "weights are LFS objects"
    # A second run of the same job.
    assert output_issues(job(), JobFolder(tmp_path / "out")) == []
    claim_output(job(), JobFolder(tmp_path / "out"))
    assert len(repository.commits) == 2
    assert hub.tokens == {"writer"}
    assert "writer" not in caplog.text


def test_obsolete_files_are_deleted_and_foreign_ones_kept(hub: Hub, tmp_path: Path) -> None:
    publish(tmp_path / "first", job(), README_md="1", old_safetensors="1")
    repository = hub.repositories[NEW]
    repository.files["notes.txt"] = b"mine"
    publish(tmp_path / "second", job(), README_md="2", new_safetensors="2")
    assert repository.files.keys() == {
        *(".gitattributes", MARKER, MANIFEST, "notes.txt"),
        *("README.md", "new.safetensors"),
    }
    with pytest.raises(UserError, match=r"contains notes\.txt, which this job did not create and would overwrite"):
        publish(tmp_path / "third", job(), notes_txt="3")
    assert repository.files["notes.txt"] == b"mine"
    assert repository.files["README.md"] == b"2"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"README.md": b"#"}, r"contains README\.md, and is not the folder of a job; use an empty folder"),
        ({MARKER: b'{"namespace": "default", "name": "other"}'}, "is the folder of job default/other"),
        # A marker of this job, but too large to be one.
        (
            {MARKER: b'{"namespace": "default", "name": "my-dog"}' + b" " * 2**24},
            "contains .dreambooth.json, and is not",
        ),
    ],
)
def test_a_repository_of_somebody_else_is_not_changed(
    hub: Hub, tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    hub.repositories[NEW] = Repository({".gitattributes": b"", **files})
    with pytest.raises(UserError, match=rf"spec\.output\.uri: '{URI}': {message}"):
        claim_output(job(), JobFolder(tmp_path / "out"))
    with pytest.raises(UserError, match=message):
        publish(tmp_path / "model", job(), README_md="# Dog")
    assert list(erase_job(job(), str(tmp_path / "out"))) == [Erased(URI, tuple(files), owned=False)]
    assert hub.repositories[NEW].files == {".gitattributes": b"", **files}
    assert not hub.repositories[NEW].commits


def test_one_of_two_jobs_claims_a_repository(hub: Hub) -> None:
    other = Repository({".gitattributes": b""})
    hub.repositories[NEW] = other

    def commit_before() -> None:
        hub.before_commit = lambda: None
        claim_repository(URI, job("other"))

    hub.before_commit = commit_before
    with pytest.raises(UserError, match="is the folder of job default/other"):
        claim_repository(URI, job())
    assert other.commits == ["Reserve for the DreamBoothJob other"]


def test_a_token_that_may_not_write_ends_the_job_before_it_trains(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "reader")
    with pytest.raises(UserError) as error:
        claim_output(job(), JobFolder(tmp_path / "out"))
    assert str(error.value.issues[0]).startswith(
        "spec.output.uri: 'team/my-dog': the Hub denies access: you have no write access; set HF_TOKEN to a token that "
        "may write to this repository (on a cluster, in the Secret"
    )
    assert "reader" not in str(error.value)
    hub.failure = Failure(401, "RepoNotFound")
    with pytest.raises(UserError, match="cannot be written to without a valid token; set HF_TOKEN to a token with"):
        claim_output(job(), JobFolder(tmp_path / "out"))
    assert NEW not in hub.repositories


def test_an_outage_is_retried(hub: Hub, tmp_path: Path) -> None:
    hub.failures = [Failure(503)]
    publish(tmp_path / "model", job(), README_md="# Dog")
    assert "README.md" in hub.repositories[NEW].files
    hub.failure = Failure(503)
    with pytest.raises(TransientError, match=r"spec\.output\.uri: 'team/my-dog': cannot be changed on http"):
        publish(tmp_path / "model", job(), README_md="# Cat")


def test_erase_deletes_the_repository_that_the_job_created(hub: Hub, tmp_path: Path) -> None:
    claim_output(job(), JobFolder(tmp_path / "out"))
    publish(tmp_path / "model", job(), README_md="# Dog")
    assert Erased(URI, ()) in list(erase_job(job(), str(tmp_path / "out")))
    assert NEW not in hub.repositories
    assert [erased for erased in erase_job(job(), str(tmp_path / "out")) if erased.url == URI] == []


@pytest.mark.parametrize("created", [True, False])
def test_erase_keeps_files_of_others_and_repositories_that_existed(hub: Hub, tmp_path: Path, created: bool) -> None:
    if not created:
        hub.repositories[NEW] = Repository({".gitattributes": b""})
    publish(tmp_path / "model", job(), README_md="# Dog", unet_safetensors="weights")
    repository = hub.repositories[NEW]
    if created:
        repository.files["notes.txt"] = b"mine"
    (erased,) = erase_job(job(), str(tmp_path / "out"))
    assert erased == Erased(URI, ("notes.txt",) if created else ())
    assert repository.files.keys() == {".gitattributes", *erased.kept}
    assert hub.repositories[NEW] is repository


def test_a_model_of_a_deleted_job_of_the_same_name_is_not_replaced(hub: Hub, tmp_path: Path) -> None:
    old, new = (f"{number}1a0c1c4-0000-4000-8000-000000000000" for number in (1, 2))
    publish(tmp_path / "model", job(uid=old), README_md="old")
    with pytest.raises(UserError, match="contains the model of an earlier job default/my-dog, with uid 11a0c1c4"):
        publish(tmp_path / "model", job(uid=new), README_md="new")
    assert hub.repositories[NEW].files["README.md"] == b"old"


def test_a_refused_deletion_is_no_success(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, own = tmp_path / "job.yaml", job()
    file.write_text(own.model_dump_json(by_alias=True, exclude_none=True))
    claim_output(own, JobFolder(tmp_path / "out"))
    publish(tmp_path / "model", own, weights_txt="x")
    monkeypatch.setattr(environment, "JOB_FILE", str(file))
    monkeypatch.setenv("HF_TOKEN", "reader")
    result = CliRunner().invoke(erase, [str(file), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, UserError), "the operator must not take the data for deleted"
    assert NEW in hub.repositories
    assert (tmp_path / "out" / MARKER).exists()
