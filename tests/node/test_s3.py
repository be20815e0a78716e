"""Images, class images and models in object storage: a real S3 server with credentials from a Secret."""

from __future__ import annotations

from pathlib import Path

import pytest
import s3fs
from devcluster import NodeCluster
from devcluster.services import start_s3
from devcluster.system import add_namespace, sprites_runtime
from jobs import CLASS_IMAGES, Job, until

from dreambooth_api.environment import STORE_KEY
from dreambooth_trainer.sprites.examples import write_examples

pytestmark = pytest.mark.long
ACCESS, SECRET = "test", "not-a-secret"


@pytest.fixture(scope="module")
def store(cluster: NodeCluster, tmp_path_factory: pytest.TempPathFactory) -> s3fs.S3FileSystem:
    """A bucket with images, and one for models."""
    url = start_s3(cluster, ACCESS, SECRET)
    store = s3fs.S3FileSystem(key=ACCESS, secret=SECRET, endpoint_url=url, use_listings_cache=False)
    for bucket in ("photos", "dreambooth"):
        store.mkdir(bucket)
    folder = tmp_path_factory.mktemp("examples")
    write_examples(folder)
    store.put(str(folder / "cat-lime-purple"), "photos/cat/", recursive=True)
    keys = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": url, STORE_KEY: "a key"}
    add_namespace(cluster, "carol")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3", "namespace": "carol"}}
    cluster.apply(secret | {"stringData": keys})
    cluster.apply(sprites_runtime("s3", uri="s3://dreambooth/models", credentialsSecret="s3"))
    return store


def test_job_uses_s3_and_deletion_removes_its_data(
    cluster: NodeCluster, store: s3fs.S3FileSystem, tmp_path: Path
) -> None:
    photos = store.glob("photos/**/*.png")[0].rpartition("/")[0]
    carol = Job(
        cluster,
        "carol",
        runtimeRef={"name": "s3"},
        subject={"images": {"uri": f"s3://{photos}"}, "class": "cat"},
        priorPreservation={"numClassImages": CLASS_IMAGES, "sharing": "Cluster"},
        cluster={"workers": 1},
        output={"deletionPolicy": "Delete"},
    )
    status = carol.succeeds()
    assert status["output"]["uri"] == "s3://dreambooth/models/carol/pink-dog"
    log = "dreambooth/models/carol/pink-dog/logs/attempt-1.log"
    until("the log is uploaded", lambda: store.exists(log) and b"Publish completed" in store.cat_file(log))
    store.get("dreambooth/models/carol/pink-dog/", str(tmp_path / "model"), recursive=True)
    assert (tmp_path / "model" / "model_index.json").exists()
    assert (tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size > 1_000_000
    assert len(store.glob("dreambooth/models/.class-images/cluster/*/class-images/**/*.png")) == CLASS_IMAGES
    cluster.kubectl("delete", "dbj", "pink-dog", "-n", "carol", "--wait=false")
    until("the job is gone", lambda: not cluster.get("dbj", "-n", "carol")["items"], 120)
    assert store.find("dreambooth/models/carol") == []
    assert not (carol.volume / "pink-dog").exists()
    assert len(store.glob("dreambooth/models/.class-images/cluster/*/class-images/**/*.png")) == CLASS_IMAGES, (
        "shared class images contain no subject data"
    )
