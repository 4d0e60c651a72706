"""What time says of items: decayed counters, and how much of them a ranking takes."""
