"""What comes in and goes out: the contract, checked at the edge; a module a noun."""
