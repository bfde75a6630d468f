"""Files that run a job under schedulers of other projects: Kubernetes and Slurm."""
