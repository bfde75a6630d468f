"""Amazon Web Services: clients, prices, instance types, spot interruptions, SageMaker jobs and clusters on EC2."""
