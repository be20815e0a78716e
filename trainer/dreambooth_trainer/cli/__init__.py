"""The `dreambooth` command line. Each command is in its own module, and imports heavy libraries when it runs."""
