"""One command for each question about speed, memory and size."""
