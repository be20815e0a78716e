"""Settings of all tests, and the tier of each."""

import pytest
from hypothesis import settings

# No test asserts a wall time: the machine is shared.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")

TIERS = ("unit", "trainer", "integration", "e2e", "long", "gpu")
# The tier of tests that do not name theirs, by the fixture that they use, or else by their folder.
BY_FIXTURE = {"plane": "integration", "ray_here": "trainer"}
BY_FOLDER = {"cluster": "integration", "helm": "integration", "node": "e2e"}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give the test its tier: unit, if nothing says otherwise."""
    if not any(item.get_closest_marker(tier) for tier in TIERS):
        item.add_marker(_tier(item))


def _tier(item: pytest.Item) -> str:
    fixtures = set(getattr(item, "fixturenames", ()))
    by_fixture = [tier for fixture, tier in BY_FIXTURE.items() if fixture in fixtures]
    return next(iter(by_fixture), BY_FOLDER.get(item.path.parent.name, "unit"))
