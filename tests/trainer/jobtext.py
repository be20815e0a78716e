"""Job files as text, for the tests of `jobfile`."""

from collections.abc import Callable

from dreambooth_api.job import DreamBoothJob

LoadText = Callable[..., DreamBoothJob]
"""Type of the fixture `load_text`."""

JOB = """\
apiVersion: dreambooth.dev/v1alpha1
kind: DreamBoothJob
metadata:
  name: my-dog
spec:
  subject:
    images: {uri: photos}
    class: dog
"""


def spec(lines: str) -> str:
    """The valid job with more lines in its spec."""
    return JOB + "".join(f"  {line}\n" for line in lines.splitlines())


def subject(lines: str) -> str:
    """The valid job with more lines in its subject."""
    return JOB + "".join(f"    {line}\n" for line in lines.splitlines())
