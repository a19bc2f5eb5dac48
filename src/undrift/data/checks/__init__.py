"""What can be wrong with data before it is learned: one file, one kind of question to it."""
