"""Numbers: real values to integers and back, and the integer arithmetic that every executor follows."""
