"""The soft prompt: its vectors and their record, the prompt file, PEFT adapters, several prompts made into one."""
