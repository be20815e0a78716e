"""The paper's evaluation prompts: 25 for objects and 25 for live subjects (supplementary material).

Source: dataset/prompts_and_classes.txt of github.com/google/dreambooth. `{}` is replaced by the noun phrase: "sks dog"
for image generation, "dog" for CLIP-T (see `fidelity.prompt_fidelity`).
"""

from __future__ import annotations

SLOT = "{}"

_PLACES = (
    "a {} in the jungle",
    "a {} in the snow",
    "a {} on the beach",
    "a {} on a cobblestone street",
    "a {} on top of pink fabric",
    "a {} on top of a wooden floor",
    "a {} with a city in the background",
    "a {} with a mountain in the background",
    "a {} with a blue house in the background",
    "a {} on top of a purple rug in a forest",
)
_MORE_PLACES = (
    "a {} with a wheat field in the background",
    "a {} with a tree and autumn leaves in the background",
    "a {} with the Eiffel Tower in the background",
    "a {} floating on top of water",
    "a {} floating in an ocean of milk",
    "a {} on top of green grass with sunflowers around it",
    "a {} on top of a mirror",
    "a {} on top of the sidewalk in a crowded street",
    "a {} on top of a dirt road",
    "a {} on top of a white rug",
)
_OUTFITS = (
    "a {} wearing a red hat",
    "a {} wearing a santa hat",
    "a {} wearing a rainbow scarf",
    "a {} wearing a black top hat and a monocle",
    "a {} in a chef outfit",
    "a {} in a firefighter outfit",
    "a {} in a police outfit",
    "a {} wearing pink glasses",
    "a {} wearing a yellow shirt",
    "a {} in a purple wizard outfit",
)
_PROPERTIES = ("a red {}", "a purple {}", "a shiny {}", "a wet {}", "a cube shaped {}")

OBJECT_PROMPTS: tuple[str, ...] = _PLACES + _MORE_PLACES + _PROPERTIES
LIVE_PROMPTS: tuple[str, ...] = _PLACES + _OUTFITS + _PROPERTIES

# Classes that get the prompts with outfits. The paper's live subjects are dogs and cats. Other words count as objects;
# a wrong guess only makes some prompts less suitable, and evaluation.prompts overrides them.
_LIVE_NOUNS = """
    animal bear bird boy bull calf camel cat chick chicken child cow deer dog donkey dragonfly duck eagle elephant fish
    fox frog giraffe girl goat goose guinea-pig hamster hedgehog hen horse human kangaroo kid kitten koala lamb lion
    lizard llama man monkey mouse owl panda parrot penguin person pet pig pigeon pony puppy rabbit raccoon rat rooster
    seal sheep sloth snake squirrel swan tiger turtle whale wolf woman zebra
"""
# "stuffed animal", "rubber duck": these are objects in the paper's dataset.
_OBJECT_WORDS = "carved cartoon ceramic clay glass lego plastic plush robot rubber stuffed toy wooden"


def is_live(class_name: str) -> bool:
    """Whether the class is a live subject: its last word is one, and no word before it marks an object."""
    *before, noun = class_name.lower().split() or [""]
    return noun in _LIVE_NOUNS.split() and not set(before) & set(_OBJECT_WORDS.split())


def paper_prompts(class_name: str) -> list[str]:
    """The 25 prompt templates for a class; each contains `{}` once."""
    return list(LIVE_PROMPTS if is_live(class_name) else OBJECT_PROMPTS)


def fill_template(template: str, noun: str) -> str:
    """Replace `{}`: `fill_template("a {} on the beach", "sks dog")`.

    Not `str.format`: templates are user input, and "{0.__class__}" must stay text.
    """
    return template.replace(SLOT, noun)
