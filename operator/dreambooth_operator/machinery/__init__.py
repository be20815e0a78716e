"""Building blocks of any level-triggered controller, independent of DreamBooth.

`client` sends requests to the API server, `reflector` mirrors a collection, `queue` and `workers` turn changes into
reconciliations, `lease` elects a leader, `events`, `metrics` and `serving` report. Import from the modules.
"""
