"""Clusters on EC2 instances that exist for one run."""
