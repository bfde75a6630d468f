"""SageMaker training jobs: their requests, their containers, and following them."""
