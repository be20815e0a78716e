"""Prometheus metrics of jobs. Only the leader has them, so that sums over replicas count nothing twice."""
