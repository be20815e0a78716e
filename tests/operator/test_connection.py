"""Credentials of the operator: those of its pod, without the library that reads kubeconfigs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from devcluster import ControlPlane

from dreambooth_operator.machinery import connection
from dreambooth_operator.machinery.client import Api, ApiError
from dreambooth_operator.machinery.connection import in_cluster
from dreambooth_operator.machinery.resources import CONFIG_MAPS, Key


def test_operator_does_not_import_the_library_that_reads_kubeconfigs() -> None:
    program = "import sys, dreambooth_operator.app; print('kubernetes' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "False"


async def test_pod_uses_its_service_account_and_its_rotated_token(
    plane: ControlPlane, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = urlsplit(plane.url)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", str(url.hostname))
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(url.port))
    (tmp_path / "ca.crt").write_bytes(plane.authority.ca.read_bytes())
    (tmp_path / "token").write_text("expired")
    async with Api(in_cluster(tmp_path)) as api:
        with pytest.raises(ApiError) as refused:
            await api.get(CONFIG_MAPS, Key(namespace, "c"))
        assert refused.value.status == 401
        (tmp_path / "token").write_text(plane.kubectl("create", "token", "default", "-n", namespace))
        monkeypatch.setattr(connection, "_TOKEN_SECONDS", 0)
        with pytest.raises(ApiError) as refused:
            await api.get(CONFIG_MAPS, Key(namespace, "c"))
        assert f"system:serviceaccount:{namespace}:default" in refused.value.message
