"""Kubernetes: what it is told (pods, jobs, manifests) and what it is asked."""
