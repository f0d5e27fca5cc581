"""The commands of ``python -m training``, each in the module of its name."""
