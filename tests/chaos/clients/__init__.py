"""The processes that use the queue during a chaos run. Each is sequential, on record, and may die at any time."""
