"""Search for the settings of a job that rank best on the valid split."""
