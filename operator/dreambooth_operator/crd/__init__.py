"""Generator of the CRDs of `dreambooth.dev/v1alpha1` and of their reference page, from the models in `dreambooth_api`."""
