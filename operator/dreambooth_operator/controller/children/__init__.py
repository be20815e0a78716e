"""Builders of a job's child objects, one module per kind. Pure: they return new objects and change no argument.

User text never reaches a shell: the entrypoint is a constant, the job is mounted as a file, and the output path is an
environment variable that the entrypoint quotes. All pods satisfy the restricted Pod Security Standard.
"""
