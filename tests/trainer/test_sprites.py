"""The embedded base model: rendering, captions, the embedded weights, and resumable training."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreambooth_api.errors import UserError
from dreambooth_trainer.cli.main import cli
from dreambooth_trainer.sprites import WEIGHTS
from dreambooth_trainer.sprites.backgrounds import BACKGROUNDS
from dreambooth_trainer.sprites.captions import RARE_TOKENS, SPRITES_PROMPTS, WORDS, caption, phrase
from dreambooth_trainer.sprites.examples import EXAMPLES, IMAGES, example_images, write_examples
from dreambooth_trainer.sprites.world import CLASSES, SIZE, random_scene, random_subject, render

pytestmark = pytest.mark.trainer

MEGABYTE = 1_000_000


def test_importing_the_package_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, dreambooth_trainer.sprites; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rendering_is_deterministic() -> None:
    first, second = random.Random(5), random.Random(5)
    one = render(random_subject(first), random_scene(first))
    two = render(random_subject(second), random_scene(second))
    assert one.shape == (SIZE, SIZE, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, two)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_subject_is_visible_in_both_colors_on_every_background(cls: str) -> None:
    rng = random.Random(cls)
    for background in BACKGROUNDS:
        subject, scene = random_subject(rng, cls), random_scene(rng, background, "big")
        image = render(subject, scene).astype(int).reshape(-1, 3)
        for color in (subject.body, subject.accent):
            assert np.abs(image - np.array(color)).sum(axis=1).min() < 30, f"{color} is not visible"


def test_every_word_of_the_captions_is_one_token() -> None:
    from dreambooth_trainer.sprites.tokenizer import CONTEXT, build_tokenizer

    tokenizer = build_tokenizer()
    split = [word for word in WORDS if len(tokenizer(word).input_ids) != 3]
    assert split == []
    assert len(tokenizer("zebra").input_ids) > 3, "an unknown word is split into characters"
    longest = phrase("dog", size="small", rare="sks", color="red", pattern="striped", background="beach")
    assert longest == "a small sks red striped dog on the beach"
    assert len(tokenizer(longest).input_ids) <= CONTEXT


def test_captions_are_correct_and_one_in_ten_has_a_rare_token() -> None:
    rng = random.Random(0)
    rare = 0
    for _ in range(2_000):
        subject, scene = random_subject(rng), random_scene(rng)
        words = caption(subject, scene, rng).split()
        assert subject.cls in words
        assert not {"small", "big"} & set(words) - {scene.size}
        assert not set(CLASSES) & set(words) - {subject.cls}
        rare += bool(set(words) & set(RARE_TOKENS))
    assert 0.05 < rare / 2_000 < 0.12


def test_there_are_25_prompts_with_one_placeholder_each() -> None:
    assert len(set(SPRITES_PROMPTS)) == 25
    assert all(prompt.count("{}") == 1 for prompt in SPRITES_PROMPTS)
    assert "a small {} on the beach" in SPRITES_PROMPTS


def test_built_in_subjects_are_deterministic_and_written_as_png_files(tmp_path: Path) -> None:
    paths = write_examples(tmp_path)
    assert len(paths) == len(EXAMPLES) * IMAGES
    assert len({subject.cls for subject in EXAMPLES.values()}) >= 6
    assert all(
        np.array_equal(a, b)
        for a, b in zip(example_images("dog-pink-blue"), example_images("dog-pink-blue"), strict=True)
    )
    with pytest.raises(KeyError, match="builtin:sprites/unicorn: is not a built-in subject; use one of dog-pink-blue"):
        example_images("unicorn")


def test_the_weights_are_small_and_contain_no_pickle_files() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}
    assert sum(path.stat().st_size for path in files) <= 14 * MEGABYTE, "a third of it is the HyperNetwork"


class TestEmbeddedModel:
    """The weights in the package."""

    def test_the_evaluator_classifies_rendered_sprites(self) -> None:
        from dreambooth_trainer.sprites.evaluator import load_evaluator

        evaluator = load_evaluator()
        rng = random.Random(99)
        cases = [(cls, background) for cls in CLASSES for background in BACKGROUNDS for _ in range(4)]
        sprites = [render(random_subject(rng, cls), random_scene(rng, background)) for cls, background in cases]
        classes = evaluator.classify(sprites, [phrase(cls) for cls in CLASSES])
        assert np.mean([CLASSES[guess] == cls for guess, (cls, _) in zip(classes, cases, strict=True)]) >= 0.99
        backgrounds = list(BACKGROUNDS)
        found = evaluator.classify(sprites, list(BACKGROUNDS.values()))
        assert (
            np.mean([backgrounds[guess] == background for guess, (_, background) in zip(found, cases, strict=True)])
            >= 0.98
        )

    def test_the_evaluator_distinguishes_subjects_of_a_class(self) -> None:
        from dreambooth_trainer.sprites.evaluator import load_evaluator

        evaluator = load_evaluator()
        rng = random.Random(7)
        subjects = [random_subject(rng, cls) for cls in CLASSES for _ in range(4)]
        first = evaluator.image_features_subject([render(subject, random_scene(rng)) for subject in subjects])
        second = evaluator.image_features_subject([render(subject, random_scene(rng)) for subject in subjects])
        similarity = first @ second.T
        same = similarity.diagonal().mean().item()
        others = (similarity.sum() - similarity.diagonal().sum()).item() / (len(subjects) * (len(subjects) - 1))
        assert same > 0.8
        assert abs(others) < 0.1
        assert (similarity.argmax(dim=1).numpy() == np.arange(len(subjects))).mean() >= 0.9

    def test_a_diffusers_pipeline_generates_the_class_of_the_prompt(self) -> None:
        from dreambooth_trainer.sprites.check import class_score, load_pipeline
        from dreambooth_trainer.sprites.evaluator import load_evaluator

        score = class_score(load_pipeline(WEIGHTS), load_evaluator(), each=6)
        assert score.images == 48
        assert score.value >= 0.9

    @pytest.mark.filterwarnings("ignore")
    def test_the_adapter_shows_subjects_that_it_was_not_trained_on(self) -> None:
        """Subject similarity of images with and without the images of a subject as prompts."""
        import torch
        from PIL import Image

        from dreambooth_trainer.sprites.check import load_pipeline
        from dreambooth_trainer.sprites.evaluator import load_evaluator

        pipeline: Any = load_pipeline(WEIGHTS)
        evaluator, rng = load_evaluator(), random.Random(11)
        cases = [(cls, random_subject(rng, cls)) for cls in CLASSES]
        photos = {
            cls: [Image.fromarray(render(subject, random_scene(rng))) for _ in range(4)] for cls, subject in cases
        }

        def similarity(cls: str, **images: Any) -> float:
            noise = [torch.Generator().manual_seed(seed) for seed in range(2)]
            prompts = [phrase(cls, background=background) for background in ("beach", "night")]
            size = {"height": SIZE, "width": SIZE, "num_inference_steps": 10, "guidance_scale": 3.0}
            made = pipeline(prompts, generator=noise, **size, **images).images
            features = [evaluator.image_features_subject(shown) for shown in (made, photos[cls])]
            return (features[0] @ features[1].T).mean().item()

        before = np.mean([similarity(cls) for cls in CLASSES])
        pipeline.load_ip_adapter(str(WEIGHTS), subfolder="ip_adapter", weight_name="ip_adapter.safetensors")
        after = np.mean([similarity(cls, ip_adapter_image=[photos[cls]]) for cls in CLASSES])
        assert after > before + 0.15


@pytest.mark.filterwarnings("ignore")
def test_interrupted_training_gives_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted while the denoiser is trained, then resumed: the weights are bitwise identical."""
    import torch
    from safetensors.torch import load_file

    from dreambooth_trainer.sprites import recipe, train_unet

    toy = replace(recipe.TOY, images=recipe.HELD_OUT + 40)
    complete = recipe.train_sprites(tmp_path / "complete", seed=1, recipe=toy)

    loss, calls = train_unet.denoising_loss, 0

    def interrupted(*arguments: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return loss(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(train_unet, "denoising_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recipe.train_sprites(tmp_path / "interrupted", seed=1, recipe=toy)
    assert not (tmp_path / "interrupted").exists(), "nothing is published before it is complete"
    monkeypatch.setattr(train_unet, "denoising_loss", loss)
    resumed = recipe.train_sprites(tmp_path / "interrupted", seed=1, recipe=toy)

    for part in (
        "unet/diffusion_pytorch_model",
        "text_encoder/model",
        "vae/diffusion_pytorch_model",
        "evaluator/model",
        "ip_adapter/ip_adapter",
        "ip_adapter/image_encoder/model",
    ):
        one, two = load_file(complete / f"{part}.safetensors"), load_file(resumed / f"{part}.safetensors")
        assert all(torch.equal(one[name], two[name]) for name in one), part


@pytest.mark.parametrize("command", [["examples"], ["train", "--out"], ["adapter", "--out"]])
def test_existing_files_are_not_overwritten(tmp_path: Path, command: list[str]) -> None:
    path = tmp_path / "dog-pink-blue" / "0.png"
    path.parent.mkdir()
    path.write_text("mine")
    with pytest.raises(UserError, match=r"(which|and) would be overwritten"):
        cli.main(args=["sprites", *command, str(tmp_path)], standalone_mode=False)
    assert [p.read_text() for p in tmp_path.rglob("*") if p.is_file()] == ["mine"]
