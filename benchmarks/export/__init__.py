"""Size, speed, memory and time of exports beside those of other exporters."""
