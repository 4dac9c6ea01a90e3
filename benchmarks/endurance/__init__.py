"""What lasts: long runs, killed and cancelled work, whole contexts, other devices."""
