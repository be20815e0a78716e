"""Entry point of `python -m dreambooth_operator`."""

from dreambooth_operator.app import main

raise SystemExit(main())
