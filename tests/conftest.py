"""Settings of all tests."""

from hypothesis import settings

# No test asserts a wall time: the machine is shared.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")
