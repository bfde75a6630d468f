"""What every package stands on: errors, text, validation, processes, files and storage. Imports nothing of ours."""
