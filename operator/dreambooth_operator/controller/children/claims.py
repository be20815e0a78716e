"""Volumes of PersistentVolumeClaims in a pod."""

from __future__ import annotations

from dreambooth_operator.machinery.resources import Json


def share_claims(pod: Json) -> Json:
    """A copy of a pod's spec with one volume per claim, under the name of the claim's first volume.

    A pod with two volumes of one claim stays in ContainerCreating on Kubernetes 1.34 and older. The volume is writable
    if any mount needs it; mounts remain read-only one by one.
    """
    claims: dict[str, Json] = {}
    volumes: list[Json] = []
    names: dict[str, str] = {}
    for volume in pod.get("volumes", []):
        source = volume.get("persistentVolumeClaim")
        if source is None:
            volumes.append(volume)
        elif source["claimName"] not in claims:
            claims[source["claimName"]] = shared = {"name": volume["name"], "persistentVolumeClaim": dict(source)}
            volumes.append(shared)
        else:
            shared = claims[source["claimName"]]
            names[volume["name"]] = shared["name"]
            if not source.get("readOnly"):
                shared["persistentVolumeClaim"].pop("readOnly", None)
    renamed = {
        kind: [_with_volume_names(container, names) for container in pod[kind]]
        for kind in ("initContainers", "containers")
        if kind in pod
    }
    return {**pod, **renamed, "volumes": volumes}


def _with_volume_names(container: Json, names: dict[str, str]) -> Json:
    mounts = [
        {**mount, "name": names[mount["name"]]} if mount.get("name") in names else mount
        for mount in container.get("volumeMounts") or ()
    ]
    return {**container, "volumeMounts": mounts} if mounts else container
