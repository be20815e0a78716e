"""The contract between the operator and the trainer. Both halves import it; it needs pydantic only.

It covers the job file, the runtime, the status, the progress message, the environment of the trainer's process, and
the errors that state what a user has to change.
"""
