"""The kubectl plugin `kubectl dreambooth`: inspect, suspend and resume jobs, and fetch their results."""
