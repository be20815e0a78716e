"""The DreamBooth operator: runs each `DreamBoothJob` as a KubeRay `RayJob`."""
