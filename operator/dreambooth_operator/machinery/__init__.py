"""What any level-triggered controller needs, and nothing about DreamBooth.

`client` talks to the API server, `reflector` mirrors a collection, `queue` and `workers` turn changes
into reconciliations, `lease` elects, `events`, `metrics` and `serving` tell. Import from the modules.
"""
