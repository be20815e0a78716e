"""The contract between the operator and the trainer. Both halves import it; it needs pydantic only.

The contract covers the job file, the runtime, the status, and the errors that tell a user what to change.
"""
