"""Images of validations: `step-000100/0.png`, their scores, and the key of the training they belong to."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dreambooth_trainer.store.folder import atomic_write

_STEP = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Validations:
    """The validations of one training in a job's folder.

    Attributes:
        root: `JobFolder.validation`.
        key: digest of what the images depend on, except the step.
        count: number of images per step.
    """

    root: Path
    key: str
    count: int

    @property
    def _key_file(self) -> Path:
        return self.root / "key"

    @property
    def _scores_file(self) -> Path:
        """One JSON object per step: step, and scores by metric."""
        return self.root / "scores.jsonl"

    @property
    def course(self) -> Path:
        """The grid of all images: rows are prompts, columns are steps."""
        return self.root / "course.png"

    def image(self, step: int, number: int) -> Path:
        """The file of one image."""
        return self.root / f"step-{step:06d}" / f"{number}.png"

    def is_own(self) -> bool:
        """Whether the folder has images of this training."""
        return self._key_file.exists() and self._key_file.read_text() == self.key

    def discard_others(self) -> None:
        """Delete the images of another training. Files that no training wrote are kept.

        Raises:
            OSError: an image cannot be deleted. This training would take it for its own.
        """
        if self.is_own() or not self._key_file.exists():
            return
        for path in self.root.iterdir():
            if _STEP.fullmatch(path.name) and not path.is_symlink():
                shutil.rmtree(path)
        for path in (self._scores_file, self.course, self._key_file):
            path.unlink(missing_ok=True)

    def prepare(self) -> None:
        """Take the folder for this training. Must run before the first image is written."""
        self.discard_others()
        atomic_write(self._key_file, self.key)

    def put(self, step: int, number: int, image: Image.Image) -> None:
        """Write an image atomically."""
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        atomic_write(self.image(step, number), buffer.getvalue())

    def images(self, step: int) -> list[Image.Image]:
        """All images of a complete step, RGB."""
        return [Image.open(self.image(step, n), formats=["PNG"]).convert("RGB") for n in range(self.count)]

    def steps(self) -> list[int]:
        """The steps all of whose images exist, in order. Empty if the images are those of another training."""
        if not self.is_own():
            return []
        found = [int(match[1]) for path in self.root.iterdir() if (match := _STEP.fullmatch(path.name))]
        return sorted(step for step in found if all(self.image(step, n).exists() for n in range(self.count)))

    def num_images(self) -> int:
        """The number of images of all steps, also of incomplete ones."""
        return sum(1 for _ in self.root.glob("step-*/*.png"))

    def scores(self) -> dict[int, dict[str, float]]:
        """The scores of each step that was scored, by metric."""
        if not self.is_own() or not self._scores_file.exists():
            return {}
        lines = [json.loads(line) for line in self._scores_file.read_text().splitlines()]
        return {line.pop("step"): line for line in lines}

    def add_scores(self, step: int, values: Mapping[str, float]) -> None:
        """Add the scores of a step. They replace earlier ones of the same step."""
        scores = {**self.scores(), step: dict(values)}
        lines = [json.dumps({"step": number, **scores[number]}) for number in sorted(scores)]
        atomic_write(self._scores_file, "".join(f"{line}\n" for line in lines))
