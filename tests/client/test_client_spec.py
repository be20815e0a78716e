"""What `Client.run` takes, what it shows, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from dreambooth import waiting
from dreambooth.errors import ClientError
from dreambooth.html import MAX_IMAGE_BYTES, job_html
from dreambooth.pipeline import load_pipeline, local_copy
from dreambooth.spec import read_job
from dreambooth.waiting import Wait, wait_for
from dreambooth_api.errors import UserError
from dreambooth_api.job import DreamBoothJob, JobSpec
from dreambooth_operator.kubectl_plugin.wanted import Wanted

SPEC: dict[str, Any] = {"subject": {"images": {"uri": "builtin:sprites/dog-pink-blue"}, "class": "dog"}}
JOB = {"apiVersion": "dreambooth.dev/v1alpha1", "kind": "DreamBoothJob", "metadata": {"name": "my-dog"}, "spec": SPEC}


def read(spec: Any = None, **given: Any) -> DreamBoothJob:
    arguments = {"images": None, "class_": None, "name": None, "settings": None}
    return read_job(spec, **{**arguments, **given})


def test_all_forms_of_a_job_are_the_same_job(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(JOB))
    expected = DreamBoothJob.model_validate(JOB)
    forms = [JOB, {"metadata": {"name": "my-dog"}, "spec": SPEC}, str(file), file, expected]
    for form in forms:
        assert read(form) == expected
    renamed = expected.model_copy(update={"metadata": expected.metadata.model_copy(update={"name": "your-dog"})})
    for form in [*forms, SPEC, JobSpec.model_validate(SPEC)]:
        assert read(form, name="your-dog") == renamed
    uri = SPEC["subject"]["images"]["uri"]
    assert read(images=uri, class_="dog", name="my-dog") == expected
    (tmp_path / "Your Dog").mkdir()
    assert read(images=tmp_path / "Your Dog", class_="dog").metadata.name == "your-dog"


def test_settings_change_fields_and_are_checked() -> None:
    settings = {"spec.training.steps": 7, "subject.captions.a.b.jpg": "a sks dog", "evaluation": {"enabled": False}}
    spec = read(SPEC, settings=settings).spec
    assert (spec.training.steps, spec.evaluation.enabled) == (7, False)
    assert spec.all_subjects[0].captions == {"a.b.jpg": "a sks dog"}
    assert read(SPEC, settings={"training.steps": None}) == read(SPEC)
    with pytest.raises(UserError) as caught:
        read(SPEC, settings={"training.stepz": 7, "priorPreservation.lossWeight": -1})
    assert [issue.path for issue in caught.value.issues] == ["spec.priorPreservation.lossWeight", "spec.training.stepz"]
    assert "settings['training.stepz'] 7" in str(caught.value)


def test_folders_are_relative_to_the_job_file_or_to_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    spec = {"subject": {"images": {"uri": "photos"}, "class": "dog"}}
    (tmp_path / "jobs" / "job.yaml").write_text(yaml.safe_dump({**JOB, "spec": spec}))
    found = [read(given).spec.all_subjects[0].images.uri for given in (spec, "jobs/job.yaml")]
    assert found == [str(tmp_path / "photos"), str(tmp_path / "jobs" / "photos")]


@pytest.mark.parametrize("given", [{}, {"class_": "dog"}, {"spec": SPEC, "images": "photos"}])
def test_a_spec_or_images_must_be_given(given: Any) -> None:
    with pytest.raises(UserError, match="needs either a spec, or images and class_; write run"):
        read(**given)


@pytest.mark.parametrize(
    ("until", "wanted"),
    [
        ("Succeeded", Wanted("phase", "succeeded")),
        ("Trained", Wanted("condition", "trained")),
        ("condition=Queued=False", Wanted("condition", "queued", "false")),
        ("phase=running", Wanted("phase", "running")),
        ("delete", Wanted("delete")),
    ],
)
def test_until(until: str, wanted: Wanted) -> None:
    assert Wait("my-dog", until, None).wanted == wanted
    with pytest.raises(ValueError, match="'ready=yes' is none of condition=TYPE"):
        _ = Wait("my-dog", "ready=yes", None).wanted


def test_text_of_others_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\x1b[2J&"
    condition = {"type": evil[:30], "status": "True", "reason": "A", "lastTransitionTime": "2026-11-29T12:00:05Z"}
    status = {
        "phase": "Running",
        "message": evil,
        "training": {"step": 5, "steps": 10, "loss": 0.5, "eta": evil[:20]},
        "conditions": [condition],
        "scores": {"dino": evil[:20]},
        "subjectScores": [{"identifier": evil, "dino": "0.5"}],
        "output": {"uri": evil},
    }
    html = job_html({"metadata": {"name": evil}, "status": status}, None)
    assert "<script" not in html and "\x1b" not in html
    assert html.count("&lt;script") >= 5
    assert '<progress value="5" max="10">' in html
    assert "<img" not in html
    picture = tmp_path / "a.png"
    for content in (b"", b"<svg onload=alert(1)>"):
        picture.write_bytes(content)
        assert "<img" not in job_html({}, picture)
    assert "<img" not in job_html({}, tmp_path / "absent.png")
    for size, shown in ((MAX_IMAGE_BYTES, True), (MAX_IMAGE_BYTES + 1, False)):
        picture.write_bytes(b"\x89PNG\r\n\x1a\n".ljust(size))
        assert ("<img" in job_html({}, picture)) is shown


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    status = {"phase": "Succeeded", "message": "done\x1b[5m", "training": {"step": 5, "steps": 10, "progress": "5/10"}}
    wait_for(lambda: {"metadata": {"name": "my-dog"}, "status": status}, Wait("my-dog", "Succeeded", 5), progress=True)
    assert "5/10" in terminal.getvalue() and "Succeeded" in terminal.getvalue()
    assert "\x1b[5m" not in terminal.getvalue()


def test_elsewhere_each_change_is_a_line_and_the_time_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0)
    phases = ["Pending", "Running", "Running", "Succeeded"]
    wait_for(lambda: {"status": {"phase": phases.pop(0)}}, Wait("my-dog", "Succeeded", None), progress=True)
    assert capsys.readouterr().out.splitlines() == ["Pending", "Running", "Succeeded"]
    monkeypatch.setattr(waiting, "POLL_SECONDS", 5)
    start = time.monotonic()
    for until, phase in (("Succeeded", "Running"), ("delete", "Succeeded")):
        with pytest.raises(TimeoutError, match=f"job my-dog has not reached {until} in 0.1 s; {phase}"):
            wait_for(lambda phase=phase: {"status": {"phase": phase}}, Wait("my-dog", until, 0.1), progress=False)
    assert time.monotonic() - start < 4


def test_importing_it_imports_no_heavy_library() -> None:
    code = (
        "import sys, dreambooth; dreambooth.Client\n"
        "heavy = 'torch ray kubernetes aiohttp diffusers transformers numpy PIL fsspec'.split()\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "dreambooth.Client()\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.splitlines() == ["[]", "['fsspec']"]


def test_a_missing_package_has_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "dreambooth_trainer.sampling.from_published", None)
    remedy = r"needs the package dreambooth_trainer.*; run pip install 'dreambooth-operator\[trainer\]'"
    with pytest.raises(ClientError, match=remedy):
        load_pipeline(str(tmp_path), None)


def test_a_model_is_loaded_for_a_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    used: list[object] = []
    pipeline = SimpleNamespace(set_progress_bar_config=lambda **given: used.append(given))
    loaded = SimpleNamespace(pipeline=pipeline, super_resolution=None, subject_images=None)
    monkeypatch.setattr(
        "dreambooth_trainer.sampling.from_published.open_pipeline",
        lambda *given: used.append(given) or (loaded, "note"),
    )
    assert load_pipeline("out/my-dog/model", "cpu") is pipeline
    assert used == [(Path("out/my-dog/model"), "cpu"), {"disable": False}]
    assert capsys.readouterr().out == "note\n"
    loaded.super_resolution = pipeline
    with pytest.raises(ClientError, match="has two stages; use dreambooth generate --model out/my-dog/model"):
        load_pipeline("out/my-dog/model", "cpu")
    loaded.super_resolution, loaded.subject_images = None, pipeline
    with pytest.raises(ClientError, match="has images as prompts; use dreambooth generate --model out/my-dog/model"):
        load_pipeline("out/my-dog/model", "cpu")


def test_models_of_a_cluster_are_copied_from_stores_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[tuple[str, Path]] = []
    monkeypatch.setattr(
        "dreambooth_trainer.store.fetch.fetch_published", lambda *given: copied.append(given) or given[1]
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert local_copy("/out/model") == local_copy("file:///out/model") == Path("/out/model")
    assert local_copy("s3://models/dog") == local_copy("hf://me/dog/") == tmp_path / "dreambooth" / "models"
    assert [uri for uri, _ in copied] == ["s3://models/dog", "hf://me/dog"]
    for other in ("https://example.org/dog", "s3://models::file:///etc", "local:///etc", "hf://me", "https://\x1b[2J"):
        with pytest.raises(ClientError, match="neither a folder in s3:// or gs:// nor hf://owner/name") as caught:
            local_copy(other)
        assert "\x1b" not in str(caught.value)
    with pytest.raises(ClientError, match="is on a volume of the cluster, pvc://claim/dog; mount it"):
        local_copy("pvc://claim/dog")
