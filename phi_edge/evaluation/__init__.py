"""How fast a package is here, and how near to what it was made from."""
