"""Sharing a prompt: its model card, and a repository on the Hugging Face Hub."""
