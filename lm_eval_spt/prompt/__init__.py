"""The soft prompt: vectors and record, the prompt file, PEFT adapter folders, composition, inspection."""
