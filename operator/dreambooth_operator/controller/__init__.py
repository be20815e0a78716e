"""The controller: `decide` computes the next actions for a job without I/O, and `reconciler` executes them."""
