"""Frostline inside training frameworks: one folder or file each, imported by name.

``frostline.integrations.huggingface`` is for Hugging Face's Trainer.
"""
