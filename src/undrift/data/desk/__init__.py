"""The desk benchmark's tasks, and the texts and prompts that its general ability is read from."""
