"""Services that users run in addition to Kubernetes: an S3 server and Kueue."""

from functools import partial

import yaml

from devcluster.build import binary, module_dir
from devcluster.image import program_image
from devcluster.node import NodeCluster
from devcluster.plane import answers, free_ports, helm
from devcluster.process import wait_until
from devcluster.sandbox import OUTSIDE

_KUEUE = "kueue-system"


def start_s3(cluster: NodeCluster, access_key: str, secret_key: str) -> str:
    """Start an S3 server without buckets, and return its URL, which is reachable from pods."""
    folder = cluster.folder / "s3"
    folder.mkdir()
    (port,) = free_ports(1)
    keys = ["--access", access_key, "--secret", secret_key]
    server = cluster.run("versitygw", *keys, "--quiet", "--port", f"{OUTSIDE}:{port}", "posix", str(folder))
    wait_until("S3 server", lambda: answers(OUTSIDE, port), process=server)
    return f"http://{OUTSIDE}:{port}"


def install_kueue(cluster: NodeCluster) -> None:
    """Install Kueue from its chart, for RayJobs and elastic RayClusters. Returns when its webhooks respond."""
    cluster.add_image("localhost/kueue:test", partial(program_image, program=binary("kueue")))
    config = {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "health": {"healthProbeBindAddress": ":8081"},
        "webhook": {"port": 9443},
        "leaderElection": {"leaderElect": False},
        "integrations": {"frameworks": ["ray.io/rayjob", "ray.io/raycluster"]},
    }
    image = {"repository": "localhost/kueue", "tag": "test", "pullPolicy": "Never"}
    values = {
        "controllerManager": {"manager": {"image": image, "resources": {"requests": {"cpu": "50m"}}}},
        "managerConfig": {"controllerManagerConfigYaml": yaml.safe_dump(config)},
    }
    file = cluster.folder / "kueue.yaml"
    file.write_text(yaml.safe_dump(values))
    chart = module_dir("kueue", "sigs.k8s.io/kueue") / "charts" / "kueue"
    helm(
        cluster,
        *("install", "kueue", str(chart), "-n", _KUEUE, "--create-namespace", "-f", str(file), "--wait"),
        "--timeout=4m",
    )
