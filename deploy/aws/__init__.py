"""Amazon Web Services: clients, instance types, logs, spot interruptions, SageMaker jobs and clusters on EC2."""
