"""Generator of the CRDs and of their reference page, from the pydantic models in `dreambooth_api`."""
