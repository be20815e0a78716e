"""The DreamBooth operator: from a `DreamBoothJob` to a published model, through KubeRay."""
