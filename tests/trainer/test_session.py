"""The connection to Ray: errors in RAY_ADDRESS, and signals."""

from __future__ import annotations

import os
import signal
import socket
from typing import Any

import pytest
import ray

from dreambooth_api.errors import TransientError, UserError
from dreambooth_trainer.cluster.session import check_address, ray_cluster


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "127.0.0.1", "10.0.0.1:99999", "a b:1"])
def test_an_address_of_another_kind_is_rejected(address: str) -> None:
    with pytest.raises(UserError) as caught:
        check_address(address)
    assert str(caught.value) == (
        f"RAY_ADDRESS: {address!r}: is not the address of a Ray cluster; set host:port, for example 10.0.0.1:6379"
    )


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_is_reported(scheme: str) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(
            TransientError, match=r"^no Ray cluster can be reached at RAY_ADDRESS .*; start it, or unset"
        ):
            check_address(address)
        server.listen()
        check_address(address)


def test_addresses_that_ray_resolves_are_not_checked() -> None:
    check_address("auto")
    check_address("local")


def test_sigterm_has_the_same_effect_with_ray_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[int] = []

    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, lambda *_: received.append(-1))  # as ray.init does

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with ray_cluster():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
