"""The two errors that are answers to a person: what was found, what was expected, what to do. One line each."""


class BadInput(ValueError):
    """Something the user gave cannot be used; the message is the one line the user should read."""


class MissingInput(FileNotFoundError):
    """A file or folder the user named is not there; the message says where to get it."""
