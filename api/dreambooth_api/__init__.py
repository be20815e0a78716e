"""The contract between the operator and the trainer, which both import. It depends only on pydantic.

It contains the job, the runtime, the status, the progress message, the environment of the trainer process, and errors
with remedies.
"""
