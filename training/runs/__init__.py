"""Run folders: what is written to them, read from them, and continued."""
