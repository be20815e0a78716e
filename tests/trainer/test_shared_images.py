"""Class images that others may have written: what is dropped, and what is believed."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_base_images import make_context

from dreambooth_api.environment import STORE_KEY
from dreambooth_trainer.phases.base import Context
from dreambooth_trainer.phases.class_images import class_image_store, shared_folder
from dreambooth_trainer.phases.evaluate import base_image_store
from dreambooth_trainer.sampling.encode_images import latent_store
from dreambooth_trainer.store.image_store import ImageStore
from dreambooth_trainer.store.latent_store import LatentStore

SIDE, SHAPE = 32, (4, 8, 8)
SHAPES = {"latent_mean": SHAPE, "latent_std": SHAPE}
LATENTS = {"latent_mean": torch.zeros(SHAPE), "latent_std": torch.ones(SHAPE)}


def noise(seed: int = 0, side: int = SIDE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def png(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_16_bit() -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + bytes(6 * SIDE) for _ in range(SIDE))))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    content = png(noise())
    return content[:33] + chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(40 * 2**20), 9)) + content[33:]


def bomb() -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(40 * 2**20), 9))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def jpeg() -> bytes:
    buffer = io.BytesIO()
    noise().save(buffer, "JPEG")
    return buffer.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "RGBA": lambda: png(noise().convert("RGBA")),
    "gray": lambda: png(noise().convert("L")),
    "palette": lambda: png(noise().convert("P")),
    "16 bit": png_16_bit,
    "JPEG": jpeg,
    "other size": lambda: png(noise(side=64)),
    "decompression bomb": bomb,
    "bomb in a text": text_bomb,
    "large file": lambda: png(noise()) + bytes(10 * 2**20),
    "truncated": lambda: png(noise())[:-200],
    "other pixels than declared": lambda: png(noise())[:33] + chunk(b"IDAT", b"x") + chunk(b"IEND", b""),
    "empty": lambda: b"",
}


def test_an_intact_image_is_read_without_its_metadata(tmp_path: Path) -> None:
    store, info = ImageStore(str(tmp_path)), PngInfo()
    info.add_text("comment", "hello")
    (tmp_path / "a.png").write_bytes(png(noise(), pnginfo=info))
    found = store.get_or_delete("a", SIDE)
    assert found is not None
    assert found.tobytes() == noise().tobytes()
    assert found.info == {}


@pytest.mark.parametrize("side", [8, 32, 512])
def test_the_least_compressible_image_is_not_too_large(tmp_path: Path, side: int) -> None:
    store = ImageStore(str(tmp_path))
    (tmp_path / "a.png").write_bytes(png(noise(side=side), compress_level=0))
    assert store.get_or_delete("a", side) is not None


@pytest.mark.parametrize("where", ["{tmp}/images", "memory://shared-images"])
@pytest.mark.parametrize("kind", FILES)
def test_other_files_are_dropped(tmp_path: Path, kind: str, where: str) -> None:
    url = where.format(tmp=tmp_path)
    store = ImageStore(url)
    store.put("a", noise())
    assert store.get_or_delete("a", SIDE) is not None
    fs, path = fsspec.url_to_fs(url)
    fs.pipe_file(f"{path}/a.png", FILES[kind]())
    assert store.get_or_delete("a", SIDE) is None
    assert store.names() == set()
    assert store.get_or_delete("a", SIDE) is None, "a file that does not exist"


@pytest.mark.parametrize("kind", ["a link", "a dangling link", "a pipe", "a folder"])
@pytest.mark.parametrize("suffix", ["png", "safetensors"])
def test_what_is_no_file_is_dropped_and_not_followed(tmp_path: Path, kind: str, suffix: str) -> None:
    images, latents = ImageStore(str(tmp_path / "shared")), LatentStore(str(tmp_path / "shared"))
    photo, victim = tmp_path / f"photo.{suffix}", tmp_path / "shared" / f"a.{suffix}"
    ImageStore(str(tmp_path)).put("photo", noise())
    LatentStore(str(tmp_path)).write("photo", LATENTS)
    before = photo.read_bytes()
    victim.parent.mkdir()
    match kind:
        case "a link":
            victim.symlink_to(photo)
        case "a dangling link":
            victim.symlink_to(tmp_path / "nothing")
        case "a pipe":
            os.mkfifo(victim)
        case _:
            victim.mkdir()
            (victim / "link").symlink_to(photo)
    found = images.get_or_delete("a", SIDE) if suffix == "png" else latents.read("a", SHAPES)
    assert found is None
    assert not os.path.lexists(victim)
    images.put("a", noise(1))
    latents.write("a", LATENTS)
    assert (images.get_or_delete("a", SIDE), latents.read("a", SHAPES)) != (None, None)
    assert photo.read_bytes() == before


def cluster_context(folder: Path, namespace: str) -> Context:
    context = make_context(folder, folder / "job", namespace)
    job = context.plan.job
    preservation = job.spec.prior_preservation.model_copy(update={"sharing": "Cluster"})
    spec = job.spec.model_copy(update={"prior_preservation": preservation})
    plan = context.plan.model_copy(update={"job": job.model_copy(update={"spec": spec})})
    return Context(plan, context.folder, (), str(folder / "store"), context.keys, context.pool)


def test_only_namespaces_with_the_same_key_share_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folders() -> list[str]:
        return [shared_folder(cluster_context(tmp_path, namespace)) for namespace in ("team-a", "team-b")]

    monkeypatch.delenv(STORE_KEY, raising=False)
    assert folders() == [f"{tmp_path}/store/namespaces/team-a", f"{tmp_path}/store/namespaces/team-b"]
    monkeypatch.setenv(STORE_KEY, "key one")
    one = folders()
    monkeypatch.setenv(STORE_KEY, "key two")
    two = folders()
    assert len({*one, *two}) == 2
    assert all(folder.startswith(f"{tmp_path}/store/cluster/") and "key" not in folder for folder in (*one, *two))


@pytest.fixture
def shared(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    """The class images of a trust domain, with one image and its latents."""
    monkeypatch.setenv(STORE_KEY, "key one")
    context = make_context(tiny_model, tmp_path / "job")
    store = class_image_store(cluster_context_of(context), "a dog")
    store.put("000001", noise())
    latent_store(store).write("000001", LATENTS)
    return store


def cluster_context_of(context: Context) -> Context:
    job = context.plan.job
    preservation = job.spec.prior_preservation.model_copy(update={"sharing": "Cluster"})
    spec = job.spec.model_copy(update={"prior_preservation": preservation})
    plan = context.plan.model_copy(update={"job": job.model_copy(update={"spec": spec})})
    return Context(plan, context.folder, (), context.store, context.keys, context.pool)


def test_signed_images_and_latents_are_believed(shared: ImageStore, tiny_model: Path, tmp_path: Path) -> None:
    assert shared.get_or_delete("000001", SIDE) is not None
    assert latent_store(shared).read("000001", SHAPES) is not None
    assert "/cluster/" in base_image_store(cluster_context_of(make_context(tiny_model, tmp_path / "job"))).url


@pytest.mark.parametrize("forgery", ["not signed", "another key", "another name", "another prompt", "changed"])
def test_forged_images_and_latents_are_dropped(
    shared: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgery: str
) -> None:
    folder, poison = Path(shared.url), noise(666)
    attacker, name = ImageStore(str(tmp_path / "attacker")), "000001"
    forged = {key: torch.ones(SHAPE) for key in SHAPES}
    match forgery:
        case "not signed":
            attacker.put(name, poison)
            latent_store(attacker).write(name, forged)
        case "another key":
            monkeypatch.setenv(STORE_KEY, "key two")
            from dreambooth_trainer.store.signing import domain_folder, trust_domain

            inside = "/".join(folder.parts[-2:])
            attacker = ImageStore(f"{domain_folder(str(tmp_path / 'attacker'), str(trust_domain()))}/{inside}")
            attacker.put(name, poison)
            latent_store(attacker).write(name, forged)
            monkeypatch.setenv(STORE_KEY, "key one")
        case "another name":
            attacker, name = shared, "000002"
            shutil.copy(folder / "000001.png", folder / "000002.png")
            shutil.copy(folder / "latents" / "000001.safetensors", folder / "latents" / "000002.safetensors")
        case "another prompt":
            attacker = ImageStore(str(folder.with_name("another-key")))
            attacker.put(name, poison)
            latent_store(attacker).write(name, forged)
        case _:
            attacker.put(name, poison)
            latent_store(attacker).write(name, forged)
            signed = Image.open(folder / "000001.png").info
            info = PngInfo()
            for key, value in signed.items():
                info.add_text(str(key), value)
            poison.save(tmp_path / "attacker" / "000001.png", pnginfo=info)
            old, new = (Path(latent_store(one).url) / "000001.safetensors" for one in (shared, attacker))
            content = bytearray(old.read_bytes())
            content[-1] ^= 1
            new.write_bytes(content)
    if attacker is not shared:
        shutil.copytree(attacker.url, folder, dirs_exist_ok=True)
    assert latent_store(shared).read(name, SHAPES) is None
    assert shared.get_or_delete(name, SIDE) is None
    assert not (folder / f"{name}.png").exists()
