"""`dreambooth verify`: checks the files of a published model."""

from __future__ import annotations

import click

from dreambooth_api.status import printable
from dreambooth_trainer.store.owner import enumerate_names
from dreambooth_trainer.store.verify import verify_model


@click.command()
@click.argument("model", metavar="MODEL")
def verify(model: str) -> None:
    """Check all files of a published model, at a folder or URL, against the SHA-256 digests in its dreambooth.json.

    Prints the digest of the model, which is also in `status.output.digest` of its job.
    """
    digest, unlisted = verify_model(model)
    if unlisted:
        click.echo(printable(f"not in dreambooth.json, and not checked: {enumerate_names(unlisted)}"))
    click.echo(digest)
