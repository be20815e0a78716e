"""The API `dreambooth.dev/v1alpha1`: the CRDs generated from the contract's models.

The models are in `dreambooth_api`; here is what only the API server needs.
"""
