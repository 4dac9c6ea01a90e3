"""What a request takes, known before any of its work is done: memory and time."""
