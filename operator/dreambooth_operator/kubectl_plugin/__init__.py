"""`kubectl dreambooth`: what a user asks about a job, and the two things that they do to it."""
