"""What is done with a finished run: predictions, a report, a model in another format."""
