"""What is kept from one question to the next (`memory`), and between processes (`disk`)."""
