"""`python -m dreambooth_trainer`: the entry point in the operator's pods."""

from dreambooth_trainer.cli.main import main

if __name__ == "__main__":
    main()
