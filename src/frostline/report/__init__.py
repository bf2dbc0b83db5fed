"""What was found or done, in forms that people read; nothing here prints."""
