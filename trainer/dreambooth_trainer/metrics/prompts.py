"""The paper's evaluation prompts: 25 for objects, 25 for live subjects (supplementary material).

Source: dataset/prompts_and_classes.txt of github.com/google/dreambooth. `{}` stands for the noun phrase:
"sks dog" when an image is drawn, "dog" when CLIP judges it (see `fidelity.prompt_fidelity`).
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

# Beings one would dress. The paper has only dog and cat; any other word is taken for an object, which costs
# no more than a less apt half of the prompts: evaluation.prompts overrides it.
_BEINGS = """
    animal bear bird boy bull calf camel cat chick chicken child cow deer dog donkey dragonfly duck eagle elephant fish
    fox frog giraffe girl goat goose guinea-pig hamster hedgehog hen horse human kangaroo kid kitten koala lamb lion
    lizard llama man monkey mouse owl panda parrot penguin person pet pig pigeon pony puppy rabbit raccoon rat rooster
    seal sheep sloth snake squirrel swan tiger turtle whale wolf woman zebra
"""
# "stuffed animal", "rubber duck": the dataset counts such things as objects.
_LIFELESS = "carved cartoon ceramic clay glass lego plastic plush robot rubber stuffed toy wooden"


def is_live(class_name: str) -> bool:
    """Whether the paper would dress it: its last word names a being, and no word before says that it is a thing."""
    *before, noun = class_name.lower().split() or [""]
    return noun in _BEINGS.split() and not set(before) & set(_LIFELESS.split())


def paper_prompts(class_name: str) -> list[str]:
    """The 25 templates for a class; each contains `{}` once."""
    return list(LIVE_PROMPTS if is_live(class_name) else OBJECT_PROMPTS)


def fill(template: str, noun: str) -> str:
    """A template with its `{}` replaced: `fill("a {} on the beach", "sks dog")`.

    Not `str.format`: templates are the user's words, and "{0.__class__}" must stay text.
    """
    return template.replace(SLOT, noun)
