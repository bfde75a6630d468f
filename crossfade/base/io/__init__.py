"""Files and folders on file systems and on S3."""
