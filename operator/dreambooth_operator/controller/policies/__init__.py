"""Policies of a job, one module per policy. Each is named after the API field that configures it."""
