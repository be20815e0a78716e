"""The API `dreambooth.dev/v1alpha1`: pydantic models, conditions, and the CRDs generated from them.

A job's spec is `dreambooth_trainer.spec.JobSpec`, the one contract with the trainer; here are the
runtime, the status, and what only a cluster needs.
"""
