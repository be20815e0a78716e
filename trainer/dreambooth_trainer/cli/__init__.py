"""The `dreambooth` command. Each command is a module; heavy imports happen when it runs."""
