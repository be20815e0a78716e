"""`python -m dreambooth_trainer`: what the operator's pods run."""

from dreambooth_trainer.cli.main import main

if __name__ == "__main__":
    main()
