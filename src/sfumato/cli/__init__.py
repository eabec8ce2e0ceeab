"""The command line of Sfumato."""
